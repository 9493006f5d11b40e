#!/usr/bin/env python3
"""Prints the expected values of tests/statistics.rs, by SciPy.

    python3 -m venv venv && venv/bin/pip install scipy==1.15.3
    venv/bin/python make_golden.py
"""

import numpy as np
from scipy import stats
from scipy.spatial.distance import jensenshannon

a = np.array([120, 80, 100, 95, 105, 0, 30])
b = np.array([60, 70, 40, 50, 45, 12, 0])


def psi(p, q):
    p, q = p / p.sum(), q / q.sum()
    p, q = np.where(p == 0, 1e-4, p), np.where(q == 0, 1e-4, q)
    return float(((p - q) * np.log(p / q)).sum())


print("psi", psi(a, b))
print("js", jensenshannon(a / a.sum(), b / b.sum()))
x, y = np.array([[30, 40, 50], [45, 30, 25]])
print("chi2", stats.chi2_contingency(np.array([x, y]), correction=False).pvalue)
for lam in (0.3, 0.8, 1.0, 1.36, 2.0):
    print("kolmogorov", lam, stats.kstwobign.sf(lam))
n, m = np.arange(100) % 37, (np.arange(150) * 7) % 41
print("ks", stats.ks_2samp(n, m).statistic)
print("bh", stats.false_discovery_control([0.01, 0.04, 0.03, 0.005, 0.5]))
for dof, value in ((1, 3.84), (5, 2.0), (9, 30.0), (63, 50.0)):
    print("chi2.sf", dof, value, stats.chi2.sf(value, dof))
