"""Prepare the data of a profile once, and evaluate weights in a process of their own.

    python prepare.py [--profile P] [--variant V]
    python prepare.py evaluate --weights weights.safetensors --split val|audit|test
    python prepare.py evaluate ... --remote --out audit.json   asks, by stdin and stdout, a
    python prepare.py serve --weights weights.safetensors      that holds the model elsewhere

Fixed. Settings come from the environment (settings.py); the flags win over it. `evaluate` gives
one JSON line {"split", "bpb", "bytes", ...}, or {"invalid", "detail"} if a check fails. Other
failures are one line and exit status 1.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from settings import Settings, read_settings
from tokens import SPLITS, read_manifest, sha256, verify

LEAK = {"cpu": 1e-3, "cuda": 0.05}  # logits; a causal model moves by rounding alone, if at all
UNEVEN = 2.0  # mean over median of the CPU time of steps; 0.99 to 1.05 over 23 honest runs
SURPRISE = 2.0  # nats: several standard errors of the mean over 64 single tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile")
    parser.add_argument("--variant")
    verbs = parser.add_subparsers(dest="verb")
    evaluation = verbs.add_parser("evaluate", help="bits per byte of saved weights")
    evaluation.add_argument("--weights", type=Path, required=True)
    evaluation.add_argument("--split", choices=SPLITS[1:], required=True)
    evaluation.add_argument("--remote", action="store_true", help="the model is at the pipe")
    evaluation.add_argument("--out", type=Path, help="file of the result instead of stdout")
    serving = verbs.add_parser("serve", help="answer an evaluator at the pipe")
    serving.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    settings = read_settings(profile=options.profile, variant=options.variant)
    if options.verb == "evaluate":
        found = evaluate(settings, options)
        if options.out:
            options.out.write_text(json.dumps(found))
        elif "invalid" in found:
            raise SystemExit(str(found["detail"]))
        else:
            print(json.dumps(found))
    elif options.verb == "serve":
        serve(settings, options.weights)
    else:
        prepare(settings)


def prepare(settings: Settings) -> None:
    """Make the settings' text unless it is already there, whole."""
    if not is_prepared(settings.folder):
        print(f"preparing {settings.text} in {settings.folder}", flush=True)
        if settings.train_shards:
            from webtext import prepare_webtext

            rows = settings.eval_tokens // settings.seq_len
            prepare_webtext(
                settings.cache, settings.folder, settings.seq_len, settings.train_shards, rows
            )
        else:
            from texts import prepare_text

            prepare_text(settings.text, settings.folder)
    print(f"{settings.text} is ready in {settings.folder}")


def is_prepared(folder: Path) -> bool:
    """Whether the manifest and every split it names are there with the right sha256."""
    if not (folder / "manifest.json").is_file():
        return False
    splits = read_manifest(folder).splits
    paths = {folder / f"{split}.bin": entry["sha256"] for split, entry in splits.items()}
    return all(path.is_file() and sha256(path) == digest for path, digest in paths.items())


def evaluate(settings: Settings, options: argparse.Namespace) -> dict[str, str | float | int]:
    """Measure saved weights on a split, by a model of this process or of one at the pipe.

    With `--remote` no model-written code runs here; a failed check is {"invalid", "detail"}.
    """
    from evaluate import bits_per_byte, leak

    manifest, split = read_manifest(settings.folder), options.split
    verify(manifest, split)
    device = set_up_torch(settings)
    if detail := not_finite(options.weights):
        return {"invalid": "not_finite_weights", "detail": detail}
    model: Any
    if options.remote:
        from remote import RemoteModel

        model = RemoteModel(manifest.vocab_size, settings.seq_len, device)
    else:
        model = load_model(options.weights, manifest.vocab_size, settings.seq_len).to(device)
    moved, surprise, known = leak(model, settings, split, device)
    if moved > LEAK[device] or surprise > SURPRISE:
        detail = f"changing later tokens moves logits by {moved:.3g} ({surprise:.2f} nats at cuts)"
        return {"invalid": "not_causal", "detail": f"the model sees later tokens: {detail}"}
    if options.remote and (detail := not_spent(settings, options.weights.with_name("result.json"))):
        return {"invalid": "budget_not_spent", "detail": detail}
    if options.remote:
        settings = replace(settings, eval_tokens=settings.audit_tokens, every=1)
    bpb, total = bits_per_byte(model, settings, split, device, known)
    measured = {"metric": bpb, "bpb": bpb, "bytes": total, "moved": moved, "surprise": surprise}
    return {"split": split, **measured}


def serve(settings: Settings, weights: Path) -> None:
    """The end of the pipe with the model: it answers, and has no text."""
    import remote

    device = set_up_torch(settings)

    def build(vocab_size: int, seq_len: int) -> Any:
        return load_model(weights, vocab_size, seq_len).to(device).eval()

    remote.serve(build)


def set_up_torch(settings: Settings) -> str:
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.set_float32_matmul_precision("high")
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(weights: Path, vocab_size: int, seq_len: int) -> Any:
    """train.build_model with the weights in it, which are never unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    import train

    model = train.build_model(vocab_size, seq_len)
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"{weights} does not fit build_model ({reason})") from None
    return model


def not_finite(weights: Path) -> str:
    """Which parameter is not finite; "": all are. Ends the program if they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"{weights} does not fit build_model ({reason})") from None
    bad = (name for name, tensor in tensors.items() if not tensor.isfinite().all())
    return next((f"{name} is not finite" for name in bad), "")


def not_spent(settings: Settings, result: Path) -> str:
    """What is wrong with the experiment's own account of its budget; "": nothing."""
    try:
        measured = json.loads(result.read_text())["measurements"]
        spent = float(measured["flops" if settings.budget.unit == "flops" else "training_seconds"])
        uneven = float(measured["uneven"])
    except (OSError, ValueError, TypeError, KeyError):
        return "result.json does not say what was spent"
    if not spent >= settings.budget.amount:
        return f"only {spent:g} of {settings.budget} is spent"
    if settings.budget.unit == "flops" and not uneven < UNEVEN:
        return f"some steps do much more work than others (mean over median {uneven:.2f})"
    return ""


if __name__ == "__main__":
    main()
