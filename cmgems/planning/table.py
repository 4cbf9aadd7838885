"""A plan as text."""

from cmgems.planning.plan import Plan

_HEADER = ("launch", "states", "buffers", "activations", "together", "fits", "micro-batch", "node", "sent per step")


def show(plan: Plan) -> str:
    """Return the plan for people to read. GB are 10^9 bytes."""
    kind, windows = plan.gpu_kind, plan.windows
    peak = kind["tflops"][plan.precision]
    lengths = f"{windows.shortest} to {windows.full} {windows.tokens.k}-mers"
    lines = [
        f"{plan.recipe} on {plan.gpus} x {plan.gpu}, {plan.nodes} node(s), {plan.precision}",
        "",
        f"model       {plan.parameters / 1e6:.1f} million parameters",
        f"windows     {lengths}, {windows.mean:.0f} on average, padded to "
        f"{plan.mean_width:.0f}; {plan.mask_rate:.1%} masked",
        f"            by {windows.source}",
        f"batch       {plan.global_batch} windows per step = {plan.gpus} x {plan.micro_batch} x {plan.micro_steps} "
        f"micro-step(s){_gaps(plan)}",
        f"per step    {plan.flops_per_step:.2e} floating-point operations{_repeated(plan)}, "
        f"{_three_digits(plan.seconds_per_step)} s",
        f"training    {', '.join(f'{steps:,} steps {_hours(hours)}' for steps, hours in plan.hours.items())}",
        f"            at {plan.utilisation:.0%} of the peak of {peak:g} TFLOP/s per GPU; evaluations, checkpoints and",
        "            waiting for the network come on top",
        "",
        f"GB on a GPU, of which {plan.usable_memory / 1e9:.1f} of {kind['memory_gb']:g} can be used; the largest "
        "micro-batch that fits; GB of a node's memory;",
        "GB that each GPU sends:",
        "",
    ]
    rows = [
        (
            launch.name,
            _gigabytes(launch.model_states),
            _gigabytes(launch.buffers),
            _gigabytes(launch.activations),
            _gigabytes(launch.memory),
            "yes" if launch.fits else "no",
            str(launch.largest_micro_batch or "-"),
            _gigabytes(launch.node_memory),
            _gigabytes(launch.sent_per_step),
        )
        for launch in plan.launches
    ]
    table = [_HEADER, *rows]
    sizes = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    for row in table:
        cells = [row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True))]
        lines.append("  ".join(cells))
    lines += ["", f"{plan.gpu}: {kind['source']}"]
    return "\n".join(lines)


def _gigabytes(number: float) -> str:
    return _three_digits(number / 1e9)


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}" if number else "-"


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"


def _gaps(plan: Plan) -> str:
    empty = plan.gpus * plan.micro_batch * plan.micro_steps - plan.global_batch
    return f", {empty} of them empty rows" if empty else ""


def _repeated(plan: Plan) -> str:
    more = plan.executed_flops_per_step / plan.flops_per_step - 1
    return f" (and {more:.0%} repeated by activation checkpointing)" if more else ""
