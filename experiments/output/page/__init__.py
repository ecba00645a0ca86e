"""The page of a run: one HTML file with all that it shows, readable without a network."""

from experiments.output.page.document import write as write
from experiments.output.page.transcript import Transcript as Transcript
