from ._drtrl import DRTRL as DRTRL
