"""Groups of options that experiments have in common; each of them is composed of some.

A group has the fields of one matter, and properties for what a run is unless its options say
otherwise: another group may turn such a property into a field.
"""

from experiments.problems.options import Activation as Activation
from experiments.problems.options import Data as Data
from experiments.problems.options import Depths as Depths
from experiments.problems.options import Loss as Loss
from experiments.problems.options import Network as Network
from experiments.problems.options import RandomStart as RandomStart
from experiments.problems.options import Widths as Widths
from experiments.problems.options import accuracy as accuracy
from experiments.runs.options.descent import Arithmetic as Arithmetic
from experiments.runs.options.descent import Batches as Batches
from experiments.runs.options.descent import BesideFlow as BesideFlow
from experiments.runs.options.descent import Momentum as Momentum
from experiments.runs.options.descent import NetworkRun as NetworkRun
from experiments.runs.options.descent import Optimizers as Optimizers
from experiments.runs.options.descent import Starts as Starts
from experiments.runs.options.descent import seeds as seeds
from experiments.runs.options.steps import Ratios as Ratios
from experiments.runs.options.steps import Segments as Segments
from experiments.runs.options.steps import Snapshots as Snapshots
from experiments.runs.options.steps import Steps as Steps
from experiments.runs.options.steps import StepSizes as StepSizes
from experiments.runs.options.steps import ratios_option as ratios_option
from experiments.runs.options.storage import Storage as Storage
from experiments.runs.options.storage import output_dir as output_dir
