from ._conv import ConvGRU as ConvGRU, ConvLSTM as ConvLSTM
from ._gated import ELSTM as ELSTM, MGU as MGU, MinGRU as MinGRU, MinLSTM as MinLSTM
from ._state_space import LRU as LRU, S4D as S4D
from ._vanilla import CTRNN as CTRNN, IndRNN as IndRNN, VanillaRNN as VanillaRNN
