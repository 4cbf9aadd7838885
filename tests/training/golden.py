"""Losses of the tiny recipe, fp32: a change of arithmetic moves them, and is a decision."""

GOLDEN_LOSSES = {
    2: 5.573360642489656,
    4: 5.56660630967882,
    6: 5.512084693239446,
    8: 5.454863165416857,
    10: 5.3996760408643265,
    12: 5.360086360447843,
}
