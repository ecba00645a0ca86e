"""The page of a run: one HTML file with all that it shows, readable without a network."""

from experiments.page.document import write as write
from experiments.page.transcript import Transcript as Transcript
