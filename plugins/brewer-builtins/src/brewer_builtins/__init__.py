"""The methods that brewer ships, each a plugin like any other."""
