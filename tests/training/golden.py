"""Losses of the tiny recipe, fp32: a change of arithmetic moves them, and is a decision."""

GOLDEN_LOSSES = {
    2: 5.576617010708513,
    4: 5.541412353515625,
    6: 5.510005741328984,
    8: 5.458546190706206,
    10: 5.417134035755118,
    12: 5.378123524424794,
}
