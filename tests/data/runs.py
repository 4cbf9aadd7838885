"""Runs of nucleotides out of the pieces in which they are read."""


def joined(pieces):
    """Return the runs, put together again: a piece that starts where the one before ended belongs to it."""
    runs = []
    for chromosome, start, bases in pieces:
        if runs and runs[-1][0] == chromosome and runs[-1][1] + len(runs[-1][2]) == start:
            runs[-1][2] += bases
        else:
            runs.append([chromosome, start, bases])
    return [tuple(run) for run in runs]
