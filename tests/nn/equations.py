"""The equations of the rate-based cells in NumPy: `cell(parameters, state, x)` is the
output and the new state."""

import equinox as eqx
import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def conv(x, w, b=0.0):
    """Slide the kernel over the grid, zeros around it, keeping its size."""
    kernel, grid = w.shape[2:], x.shape[1:]
    before = [((k - 1) // 2, k // 2) for k in kernel]
    x = np.pad(x, [(0, 0), *before])
    out = np.zeros((len(w), *grid)) + b
    for at in np.ndindex(*kernel):
        patch = x[(slice(None), *(slice(i, i + n) for i, n in zip(at, grid)))]
        out += np.einsum("oi,i...->o...", w[(..., *at)], patch)
    return out


def vanilla(p, h, x):
    h = np.tanh(p.weight_ih @ x + p.weight_hh @ h + p.bias)
    return h, h


def ctrnn(p, h, x):
    tau = np.exp(p.tau.log) if isinstance(p.tau, eqx.Module) else p.tau.value
    keep, drive = np.exp(-1 / tau), p.weight_ih @ x + p.bias
    if p.weight_hh is not None:
        drive = drive + p.weight_hh @ h
    h = keep * h + (1 - keep) * np.tanh(drive)
    return h, h


def indrnn(p, h, x):
    h = np.maximum(p.weight_ih @ x + p.weight_hh * h + p.bias, 0)
    return h, h


def mgu(p, h, x):
    (w_f, w_h), (u_f, u_h) = np.split(p.weight_ih, 2), np.split(p.weight_hh, 2)
    b_f, b_h = np.split(p.bias, 2)
    f = sigmoid(w_f @ x + u_f @ h + b_f)
    h = (1 - f) * h + f * np.tanh(w_h @ x + b_h + f * (u_h @ h))
    return h, h


def mingru(p, h, x):
    (w_z, w_h), (b_z, b_h) = np.split(p.weight_ih, 2), np.split(p.bias, 2)
    z = sigmoid(w_z @ x + b_z)
    h = (1 - z) * h + z * (w_h @ x + b_h)
    return h, h


def minlstm(p, h, x):
    (w_f, w_i, w_h), (b_f, b_i, b_h) = np.split(p.weight_ih, 3), np.split(p.bias, 3)
    f, i = sigmoid(w_f @ x + b_f), sigmoid(w_i @ x + b_i)
    h = (f * h + i * (w_h @ x + b_h)) / (f + i)
    return h, h


def elstm(p, c, x):
    (w_f, w_z), (u_f, u_z) = np.split(p.weight_ih, 2), np.split(p.weight_hh, 2)
    b_f, b_z = np.split(p.bias, 2)
    f = sigmoid(w_f @ x + u_f * c + b_f)
    c = f * c + (1 - f) * np.tanh(w_z @ x + u_z * c + b_z)
    return sigmoid(p.weight_io @ x + p.weight_ho @ c + p.bias_o) * c, c


def lru(p, h, x):
    lam = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
    h = lam * h + np.exp(p.gamma_log) * ((p.B_re + 1j * p.B_im) @ x)
    return ((p.C_re + 1j * p.C_im) @ h).real + p.D * x, h


def s4d(p, h, x):
    a, dt = -np.exp(p.A_re_log) + 1j * p.A_im, np.exp(p.dt_log)[:, None]
    h = np.exp(dt * a) * h + (np.exp(dt * a) - 1) / a * x[:, None]
    y = 2 * np.sum((p.C_re + 1j * p.C_im) * h, axis=1).real
    return y + p.D * x, h


def convgru(p, h, x):
    w_r, w_z, w_h = np.split(conv(x, p.conv_ih.weight, p.conv_ih.bias), 3)
    u_r, u_z, u_h = np.split(conv(h, p.conv_hh.weight), 3)
    z = sigmoid(w_z + u_z)
    h = z * h + (1 - z) * np.tanh(w_h + sigmoid(w_r + u_r) * (u_h + p.bias_n))
    return h, h


def convlstm(p, state, x):
    h, c = state
    gates = conv(x, p.conv_ih.weight, p.conv_ih.bias) + conv(h, p.conv_hh.weight)
    i, f, g, o = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)
