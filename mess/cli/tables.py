"""What a person sees on the terminal as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from mess.cli.terminal import out, say
from mess.common.metrics import MASKS
from mess.sentences.accuracy import against, labels_of
from mess.sentences.explanation import explanation_lines
from mess.sentences.intervals import against_best_lines, interval_lines, policy_name
from mess.sentences.new_images import new_images_lines


def print_exits(rows: Sequence[dict[str, Any]]) -> None:
    """The candidate exits, one a line."""
    table = Table()
    for name in ("exit", "block"):
        # Whole, to be copied into a command.
        table.add_column(name, no_wrap=True)
    for name in ("MACs (M)", "path (M)", "params (k)", "stride"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for row in rows:
        table.add_row(
            row["exit_id"],
            row["block"],
            f"{row['exit_macs'] / 1e6:,.1f}",
            f"{(row['exit_macs'] + row['backbone_macs']) / 1e6:,.1f}",
            f"{row['params'] / 1e3:,.1f}",
            str(row["output_stride"]),
            row["status"].partition(":")[0],
        )
    out.print(table)
    for row in rows:
        if row["status"] != "kept":
            say(f"{row['exit_id']} {row['status']}")
    kept = sum(row["status"] == "kept" for row in rows)
    say(f"{len(rows)} candidates, {kept} kept.")


def print_tuning(found: dict[str, Any]) -> None:
    """Every trial, and the settings of the best."""
    table = Table("stage", "learning rate", "iterations", "mIoU, held out")
    for column in table.columns[1:]:
        column.justify = "right"
    for trial in found["trials"]:
        miou = "no finite loss" if trial["miou"] is None else f"{trial['miou']:.4f}"
        rate, iterations = f"{trial['learning_rate']:g}", f"{trial['iterations']:,}"
        table.add_row(trial["stage"], rate, iterations, miou)
    out.print(table)
    for stage in found["at_the_end"]:
        say(f"The best rate of {stage} is at the end of those tried; try more with --rate.")
    say("Best: " + " ".join(f"--set {setting}" for setting in found["settings"]))


def print_estimate(found: dict[str, Any]) -> None:
    """What each stage of training would take."""
    table = Table("stage", "iterations", "seconds each", "hours", "memory at most (GB)")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["stages"]:
        table.add_row(
            row["stage"],
            f"{row['iterations']:,}",
            f"{row['seconds']:.3g}",
            f"{row['hours']:,.2f}",
            f"{row['memory'] / 1e9:,.2f}",
        )
    out.print(table)
    height, width = found["crop"]
    has = "" if found["memory"] is None else f" of {found['memory'] / 1e9:,.0f} GB"
    say(
        f"About {found['hours']:,.2f} hours of training on {found['device']}{has}, in batches of "
        f"{found['batch_size']} crops of {height}×{width}: {found['exits']} exits, "
        f"{found['parameters'] / 1e6:,.1f} M parameters in all."
    )


def print_ceiling(found: dict[str, Any]) -> None:
    """By size a table of classes and output strides, and the classes that are out of reach."""
    by_size: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in found["ceilings"]:
        by_size.setdefault((row["height"], row["width"]), []).append(row)
    for (height, width), rows in by_size.items():
        strides = (f"stride {row['output_stride']}" for row in rows)
        table = Table("class", "pixels", *strides, title=f"{height}×{width}")
        for column in table.columns[1:]:
            column.justify = "right"
        for number, (name, share) in enumerate(zip(found["classes"], found["pixels"], strict=True)):
            values = (row["iou"][number] for row in rows)
            cells = ("" if value is None else f"{value:.3f}" for value in values)
            table.add_row(name, f"{100 * share:.2f}%", *cells)
        table.add_row("mIoU", "", *(f"{row['miou']:.3f}" for row in rows), style="bold")
        out.print(table)
    strides = ", ".join(str(stride) for stride in found["output_strides"])
    say(
        f"The best that answers at each output stride can about be, on {found['images']} images of "
        f"{found['split']}. Exits of this configuration have {strides}."
    )
    for fault in found["out_of_reach"]:
        say(
            f"At {fault['height']}×{fault['width']} no exit can get {fault['class']} right: its "
            f"IoU is at most about {fault['iou']:.2f}. Raise data.size, or let exits read finer "
            "features (exits.skips, exits.skip_stride)."
        )


def print_caches(rows: Sequence[dict[str, Any]]) -> None:
    """The caches of a run."""
    table = Table("cache", "split", "labels")
    for name in ("images", "exits", "signals", "parts", "pairs", "MB"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for row in rows:
        counts = [str(row.get(name, "")) for name in ("images", "exits")]
        signals = str(len(row["signals"])) if "signals" in row else ""
        size = f"{(row['bytes'] + row['pair_bytes']) / 1e6:,.2f}"
        pairs = "" if row.get("pairs") is None else f"{row['pairs']:,}"
        usable = "ready" if row["state"] == "ready" else "not usable"
        found = [str(row["parts"]), pairs, size, usable]
        # Pictures in a folder are of no split.
        of = [row.get("split") or "", row.get("labels", "")]
        table.add_row(row["name"], *of, *counts, signals, *found)
    out.print(table)
    for row in rows:
        if row["state"] != "ready":
            say(f"{row['name']}: {row['state']}")


def print_verification(rows: Sequence[dict[str, Any]]) -> None:
    """What was verified, and every fault."""
    for row in rows:
        say(
            f"{row['name']}: {row['parts']} parts, {row['rows']:,} rows, "
            f"{row['bytes'] / 1e6:,.2f} MB in {row['seconds']:.1f} s: "
            f"{len(row['faults']) or 'no'} fault{'' if len(row['faults']) == 1 else 's'}"
        )
        for fault in row["faults"]:
            say(f"  {fault}")


def print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    """The exit each image took, or how many of its tiles did, and its label map's file."""
    table = Table("image", "exit", "signal", "label map")
    for row in rows:
        signal = "" if row["signal"] is None else f"{row['signal']:.3f}"
        exits = row["exit_id"]
        if row["tiles"] is not None:
            taken = [f"{count} at {name}" for name, count in row["tiles"].items() if count]
            exits = f"{sum(row['tiles'].values())} tiles: {', '.join(taken)}"
        table.add_row(row["image"], exits, signal, row["label_map"])
    out.print(table)


def print_search(result: dict[str, Any]) -> None:
    """The chosen instance beside the network run to its end."""
    labels = labels_of(result)
    table = Table("exit", "signal", "threshold", "images")
    for exit_ in result["exits"]:
        threshold = "" if exit_["threshold"] is None else f"{exit_['threshold']:.4f}"
        table.add_row(
            exit_["exit_id"], exit_["signal"] or "", threshold, f"{100 * exit_['exit_rate']:.1f}%"
        )
    out.print(table)
    out.print(_comparison(result["predicted"], result["baseline"], labels))
    found = result["search"]
    certainty = "proven optimal"
    if "certificate" in result:
        margin = result["certificate"]["margin"]
        certainty = "the safest"
        if not result["certificate"]["holds"]:
            certainty = "not certified: what loses least"
        elif margin is not None and "lost" in result["certificate"]:
            best = "most accurate" if result["target"] == "accuracy" else "cheapest"
            certainty = f"the {best} that is certified"
        elif margin is not None:
            nearly = "" if found["optimal"] else "within 0.0005 mIoU or 0.5% of the cost of "
            with_margin = f" with a margin of {margin:.4f} mIoU" if margin else ""
            certainty = f"{nearly}the best{with_margin}"
    elif not found["optimal"]:
        # A gap tells an interrupted exhaustive search from trials.
        certainty = f"best of {found['evaluated']:,} trials, not proven,"
        if found["gap"] is not None:
            unit = " mIoU" if result["target"] == "accuracy" else " of the cost"
            certainty = f"interrupted: best so far, at most {found['gap']:.3g}{unit} from the best"
    source = found.get("source")
    how = f", read off the front of {source}" if source else f" in {found['seconds']:.1f} s"
    accuracy = against(
        f"{certainty} among {found['configurations']:,} configurations{how}; "
        f"error {result['error']:.4f}.",
        labels,
    )
    say(f"{accuracy} Result: {result['path']}")
    for line in (*new_images_lines(result), *explanation_lines(result)):
        say(line)


def print_policies(result: dict[str, Any]) -> None:
    """Every policy's answer, and how well its signals predict failure."""
    table = Table()
    table.add_column("policy", overflow="fold")
    miou = against("mIoU", result.get("labels", MASKS))
    for name in ("exits", miou, "MACs (M)", "ms", "fewer MACs", "failure prediction"):
        table.add_column(name, justify="right")
    baseline = result["baseline"]
    missing = []
    for row in result["policies"]:
        name = policy_name(row)
        if "infeasible" in row:
            missing.append(f"{name}: {row['infeasible']}")
            continue
        got, score = row["predicted"], row["failure_prediction"]
        table.add_row(
            f"{name}{' *' * (row['search'] == result['best'])}"
            f"{', not proven' * (not row['optimal'] and 'certificate' not in row)}",
            str(len(row["exits"])),
            f"{got['miou']:.4f}",
            f"{got['macs'] / 1e6:,.1f}",
            "" if got["latency_ms"] is None else f"{got['latency_ms']:.2f}",
            f"{baseline['macs'] / got['macs']:.2f}x",
            "" if score is None else f"{score:.3f}",
        )
    out.print(table)
    # Below the table: a reason is a sentence, which no column has room for.
    told = [against(line, result.get("labels", MASKS)) for line in against_best_lines(result)]
    for line in (*missing, *told):
        say(line)
    say(f"* is the best: `mess export --search {result['best']}`. Fronts: {result['path']}")
    best = next(row for row in result["policies"] if row.get("search") == result["best"])
    if "certificate" in best or "expected" in best:
        for line in new_images_lines(best):
            say(against(line, result["labels"]))


def print_evaluation(report: dict[str, Any]) -> None:
    """What a bundle did on a split."""
    labels = report.get("labels", MASKS)
    out.print(_comparison(report, report["baseline"], labels))
    for exit_ in report.get("exits", ()):
        told = f"mIoU {exit_['miou']:.4f} after {exit_['latency_ms']:.2f} ms"
        say(f"{exit_['exit_id']}: {against(told, labels)}")
    rates = ", ".join(f"{100 * rate:.1f}%" for rate in report["exit_rates"])
    shares = "" if "exits" in report else f", exit rates {rates}"
    images = f"{report['images']} {report['split']} images"
    if report["split"] is None:
        images = f"{report['images']} images in {report['root']}"
    say(f"{images}{shares}. Bundle: {report['bundle']}")
    intervals = report["intervals"]
    if intervals["strength"] is not None:
        out.print(_classes(intervals["classes"], labels))
    for line in interval_lines(intervals):
        say(against(line, labels))
    if "agreement" in report:
        agreement = report["agreement"]
        latency = agreement["predicted_latency_ms"]
        told = (
            f"Same exit as predicted for {100 * agreement['same_exit']:.1f}% of the images; "
            f"predicted mIoU {agreement['predicted_miou']:.4f}, "
            f"{agreement['predicted_macs'] / 1e6:,.1f} M MACs"
            f"{'' if latency is None else f', {latency:.2f} ms'}."
        )
        say(against(told, labels))


def _classes(rows: Sequence[dict[str, Any]], labels: str) -> Table:
    """The IoU of every class, and what is lost in it; rare ones without intervals."""
    table = Table("class")
    for name in ("groups", against("IoU", labels), "95%", "run to its end", "lost", "95%"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row["class"], str(row["groups"])]
        for key in ("iou", "baseline", "error"):
            value, low, high = (row[key][end] for end in ("value", "low", "high"))
            cells.append("" if value is None else f"{value:.4f}")
            if key != "baseline":
                cells.append("" if low is None else f"{low:.4f} to {high:.4f}")
        table.add_row(*cells)
    return table


def _comparison(ours: dict[str, Any], baseline: dict[str, Any], labels: str) -> Table:
    table = Table("", "instance", "run to its end", "ratio")
    for key, name, scale, digits in (
        ("miou", against("mIoU", labels), 1.0, 4),
        ("macs", "MACs (M)", 1e-6, 1),
        ("latency_ms", "latency (ms)", 1.0, 2),
    ):
        if ours.get(key) is None:
            continue
        mine, theirs = ours[key] * scale, baseline[key] * scale
        ratio = f"{theirs / mine:.2f}x less" if mine <= theirs else f"{mine / theirs:.2f}x more"
        ratio = "" if key == "miou" else ratio
        table.add_row(name, f"{mine:,.{digits}f}", f"{theirs:,.{digits}f}", ratio)
    return table
