"""`python -m trainers experiment.yaml key=value`: one run, alone or under torchrun. Needs neither Ray nor MLflow.

The run lands in `--run-dir` (default: runs/<digest>); starting it again continues it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import Any

from trainers.problems import InvalidInput
from trainers.yaml_text import read_table


def main(arguments: list[str] | None = None) -> int:
    """Run one experiment and print one line an epoch.

    Exit code 1: the run diverged; 2: bad input, nothing was started; 3: a bad place, or another process's by now; 130:
    interrupted by Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m trainers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="experiment.yaml | key=value")
    parser.add_argument("--run-dir", type=Path, help="default: runs/<digest of the experiment>")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets; default: ORCHESTRATOR_DATA")
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    options = parser.parse_args(arguments)
    try:
        # Not above: the catalog loads what other packages bring, and where that fails it is bad input like any other.
        from trainers.config import apply_values, parse

        if options.threads is not None and options.threads < 1:
            raise InvalidInput.single("--threads", f"{options.threads}: must be at least 1")
        raw = read_words(options.words)
        if options.data_dir is not None:
            raw = apply_values(raw, {"data.directory": str(options.data_dir.absolute())})
        experiment = parse(raw)
        run_dir = options.run_dir or Path("runs") / experiment.digest()
    except InvalidInput as error:
        print(error.said, file=sys.stderr)
        return 2
    # Before torch is imported: spinning threads of the ranks of one machine slow each other down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    import torch
    import torch.distributed as dist

    from trainers.loop import fit
    from trainers.precision import precision_notices
    from trainers.ranks import Ranks, local_device
    from trainers.reporting import describe, on_device
    from trainers.run_folder import TakenOver
    from trainers.totals import Diverged

    if options.threads:
        torch.set_num_threads(options.threads)
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if distributed:
        device = local_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    ranks = Ranks.current()
    try:
        if ranks.is_first:
            for notice in [*experiment.notices, *precision_notices(experiment.precision, ranks.device)]:
                print(f"note: {notice}")
            work = f"{experiment.training_passes} passes per image {on_device(ranks.device)}"
            print(f"run folder {run_dir}, {work}", flush=True)
        for record in fit(experiment, run_dir.absolute(), ranks=ranks):
            if ranks.is_first:
                print(describe(record, experiment.epochs), flush=True)
    except InvalidInput as error:
        print(error.said, file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"error: diverged: {error}; lower optimizer.learning_rate or the method's weights", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if ranks.is_first:
            print(f"interrupted; the same command again goes on after the last epoch in {run_dir}", file=sys.stderr)
        return 130
    except TakenOver as error:
        print(f"error: {error}; this one has stopped", file=sys.stderr)
        return 3
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What writes into an open file does not say which it is.
        where = error.filename or run_dir
        print(f"error: {where}: {error.strerror}; name another --run-dir, or free this one", file=sys.stderr)
        return 3
    finally:
        if distributed:
            dist.destroy_process_group()
    return 0


def read_words(words: list[str]) -> dict[str, Any]:
    """YAML files and key=value words as one raw configuration; later ones win, key by key in every table.

    But a table of a file that names another choice than before (`method: {name: trades}` after weat_adv) replaces it:
    the fields that were given belong to the other one.
    """
    from trainers.config import apply_overrides
    from trainers.filling.choices import fill_table

    raw: dict[str, Any] = {}
    for word in words:
        if "=" in word:
            raw = apply_overrides(raw, [word])
        else:
            later = read_table(Path(word))
            fill_table(later, raw)
            raw = later
    return raw


if __name__ == "__main__":
    sys.exit(main())
