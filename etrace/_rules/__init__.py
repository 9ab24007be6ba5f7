from ._dni import DNI as DNI
from ._drtrl import DRTRL as DRTRL
from ._eprop import EProp as EProp
from ._esdrtrl import ESDRTRL as ESDRTRL, PPProp as PPProp
from ._hybrid import HybridDRTRL as HybridDRTRL
from ._kfrtrl import KFRTRL as KFRTRL
from ._ostl import OSTL as OSTL
from ._otpe import OTPE as OTPE
from ._ottt import OTTT as OTTT
from ._rflo import RFLO as RFLO
from ._rtrl import RTRL as RTRL
from ._snap import SnAp as SnAp
from ._three_factor import ThreeFactor as ThreeFactor
from ._uoro import UORO as UORO
