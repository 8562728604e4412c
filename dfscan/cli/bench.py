"""The ``dfscan bench`` command."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from dfscan.cli import options
from dfscan.cli.guard import guarded, start_logging
from dfscan.config import CLUSTER, DETECTOR, FACES, PROVENANCE, SAMPLING, ScanSettings


@guarded
@options.with_settings(
    "include exclude workers threads timeout max_memory sandbox", SAMPLING, FACES, DETECTOR, PROVENANCE, CLUSTER
)
def bench(
    *,
    inputs: Annotated[list[str], typer.Argument(help="Video files and folders.", show_default=False, metavar="PATH")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    settings: ScanSettings,
    config: options.Config = None,
) -> None:
    """Measure time and memory for each stage of a scan.

    Runs a complete scan into a temporary folder. Then measures decoding alone and classification alone, as a lower
    bound for the cost of a scan on this machine. With --on ray, compares a local scan with one worker of a Ray cluster
    and with all its workers instead; each of these runs uses only as many cores as its workers have threads.

    Examples:

    \b
      dfscan bench ./videos
      dfscan bench ./videos --device cuda:1 --batch-size 64
      dfscan bench ./videos --on ray --threads 1 --json > bench.json
    """
    from dfscan.scan.bench import run_bench, run_cluster_bench

    start_logging()
    figures = (run_cluster_bench if settings.on == "ray" else run_bench)(inputs, settings)
    lines = _cluster_table(figures) if settings.on == "ray" else _table(figures)
    typer.echo(json.dumps(figures, indent=2) if as_json else "\n".join(lines))


def _cluster_table(figures: dict[str, Any]) -> list[str]:
    num_workers = figures["workers"]
    threads = "1 thread" if figures["threads"] == 1 else f"{figures['threads']} threads"
    lines = [f"{figures['videos']} videos, {threads} each, on {figures['device']}"]
    lines.append(f"{'':<14}{'wall s':>10}{'CPU s':>10}{'cores used':>12}{'confined to':>13}")
    for name, key in (("this machine", "local"), ("1 worker", "one_worker"), (f"{num_workers} workers", "all_workers")):
        wall_s, cpu_s, cores = (figures[key + end] for end in ("_s", "_cpu_s", "_cores"))
        costs = f"{'-':>10}{'-':>12}{'-':>13}" if cpu_s is None else f"{cpu_s:>10.2f}{cpu_s / wall_s:>12.2f}{cores:>13}"
        lines.append(f"{name:<14}{wall_s:>10.2f}{costs}")
    if figures["not_confined"]:
        lines.append(
            f"no run was confined to the cores of its workers: {figures['not_confined']}; one worker may have used more"
        )
    overhead_ms = 1000 * figures["overhead_s_per_video"]
    lines.append(f"overhead of a worker: {overhead_ms:.1f} ms per video ({figures['overhead']:+.1%})")
    lines.append(f"efficiency of {num_workers} workers: {figures['efficiency']:.2f}")
    lines.append(f"{figures['videos_per_hour']:.0f} videos per hour, after a start of {figures['start_s']:.0f} s")
    return lines


def _table(figures: dict[str, Any]) -> list[str]:
    width = max(10, *(len(name) + 2 for name in figures["stages"]))
    lines = [f"{'stage':<{width}}{'items':>8}{'wall s':>10}{'CPU s':>10}{'CPU share':>11}"]
    for name, stage in figures["stages"].items():
        wall_s = "-" if stage["wall_s"] is None else f"{stage['wall_s']:.2f}"
        cells = f"{stage['count']:>8}{wall_s:>10}{stage['cpu_s']:>10.2f}{stage['cpu_share']:>11.1%}"
        lines.append(f"{name:<{width}}{cells}")
    floor = figures["floor"]
    lines.append(f"{'whole':<{width}}{figures['videos']:>8}{figures['wall_s']:>10.2f}{figures['cpu_s']:>10.2f}")
    lines.append(f"{'floor':<{width}}{'':>8}{floor['wall_s']:>10.2f}{floor['cpu_s']:>10.2f}")
    ratio = figures["ratio_to_floor"]
    lines.append(
        f"floor: decoding alone {floor['decode_cpu_s']:.2f} CPU s, classification alone "
        f"{floor['classify_cpu_s']:.2f} CPU s; the whole scan takes {f'{ratio:.2f} times as much' if ratio else 'more'}"
    )
    lines.append(
        f"{figures['videos_per_hour']:.0f} videos per hour, {figures['faces_per_s']:.1f} faces per second on "
        f"{figures['device']}, {figures['cpus']} CPUs; peak memory {figures['peak_all_rss_bytes'] / 1e9:.2f} GB, "
        f"including {figures['peak_decoder_rss_bytes'] / 1e9:.2f} GB per decoder"
    )
    if figures["peak_gpu_bytes"] is not None:
        lines.append(
            f"GPU: busy {figures['gpu_share']:.0%} of the time, peak memory {figures['peak_gpu_bytes'] / 1e9:.2f} GB; "
            f"the whole scan takes {figures['wall_ratio_to_floor']:.2f} times the wall time of the slower of decoding "
            f"alone ({floor['decode_wall_s']:.2f} s) and classification alone ({floor['classify_wall_s']:.2f} s)"
        )
    return lines
