"""What an old TextBrewer script or config becomes: read off its text, judged, and written as a run config."""

from brewer_core.migration.findings import Finding
from brewer_core.migration.judging import Examination, examine
from brewer_core.migration.run_documents import RunDocument, run_document

__all__ = ["Examination", "Finding", "RunDocument", "examine", "run_document"]
