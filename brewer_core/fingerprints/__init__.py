"""Fingerprints: hashes of what makes a model, an adaptor or a setting answer as it does (`values`), of which code is a part (`code`)."""

from brewer_core.fingerprints.values import changes, fingerprint

__all__ = ["changes", "fingerprint"]
