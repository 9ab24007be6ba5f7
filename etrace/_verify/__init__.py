from ._check import GradientCheck as GradientCheck, check_gradients as check_gradients
