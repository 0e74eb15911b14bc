"""What a newcomer writes: a layer forward and backward, and a wrong call."""

import numpy as np

import im2col_conv as ic

x = np.random.default_rng(0).standard_normal((2, 3, 17, 12), dtype=np.float32)
w = np.ones((5, 3, 3, 4), np.float32)
y = ic.conv(x, w, np.zeros(5, np.float32), stride=(2, 1), padding=((1, 0), (2, 1)))
dx, dw, db = ic.conv_grads(np.ones_like(y), x, w, stride=(2, 1), padding=((1, 0), (2, 1)))
assert (dx.shape, dw.shape, db.shape) == (x.shape, w.shape, (5,))
slow = ic.reference.conv(x, w, np.zeros(5), stride=(2, 1), padding=((1, 0), (2, 1)))
assert np.allclose(y, slow, atol=1e-4)
try:
    ic.conv(x, w[:, :2])
except ValueError as error:
    print("As it should be:", error)
else:
    raise SystemExit("a wrong shape was taken")
