from ._drtrl import DRTRL as DRTRL
from ._kfrtrl import KFRTRL as KFRTRL
from ._rtrl import RTRL as RTRL
from ._uoro import UORO as UORO
