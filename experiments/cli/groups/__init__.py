"""Groups of options that experiments have in common; each of them is composed of some.

A group has the fields of one matter, and properties for what a run is unless its options say
otherwise: another group may turn such a property into a field.
"""

from experiments.cli.groups.descent import Ratios as Ratios
from experiments.cli.groups.descent import Segments as Segments
from experiments.cli.groups.descent import Snapshots as Snapshots
from experiments.cli.groups.descent import Steps as Steps
from experiments.cli.groups.descent import StepSizes as StepSizes
from experiments.cli.groups.descent import ratios_option as ratios_option
from experiments.cli.groups.problem import Activation as Activation
from experiments.cli.groups.problem import Data as Data
from experiments.cli.groups.problem import Depths as Depths
from experiments.cli.groups.problem import Network as Network
from experiments.cli.groups.problem import RandomStart as RandomStart
from experiments.cli.groups.problem import Widths as Widths
from experiments.cli.groups.problem import accuracy as accuracy
from experiments.cli.groups.runs import Arithmetic as Arithmetic
from experiments.cli.groups.runs import Batches as Batches
from experiments.cli.groups.runs import Momentum as Momentum
from experiments.cli.groups.runs import NetworkRun as NetworkRun
from experiments.cli.groups.runs import Starts as Starts
from experiments.cli.groups.runs import seeds as seeds
from experiments.cli.groups.storage import Storage as Storage
from experiments.cli.groups.storage import output_dir as output_dir
