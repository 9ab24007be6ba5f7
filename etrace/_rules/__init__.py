from ._drtrl import DRTRL as DRTRL
from ._eprop import EProp as EProp
from ._ostl import OSTL as OSTL
from ._rflo import RFLO as RFLO
