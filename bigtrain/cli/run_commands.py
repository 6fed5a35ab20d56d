"""bigtrain train|keep-outputs|profile|verify-resume|replay|eval|generate|export|import|report|runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from bigtrain.base import keep_streams
from bigtrain.cli.printing import JsonOption, OverridesArgument, RunArgument, echo, print_json, print_table, say


class Format(StrEnum):
    """The formats of `export`."""

    hf = "hf"
    gguf = "gguf"
    peft = "peft"


class ExportType(StrEnum):
    """The types of weights in a GGUF file."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class GgufType(StrEnum):
    """llama.cpp's names of the types of a GGUF file."""

    f32 = "F32"
    f16 = "F16"
    bf16 = "BF16"
    q8_0 = "Q8_0"
    q6_k = "Q6_K"
    q5_k_m = "Q5_K_M"
    q5_k_s = "Q5_K_S"
    q5_1 = "Q5_1"
    q5_0 = "Q5_0"
    q4_k_m = "Q4_K_M"
    q4_k_s = "Q4_K_S"
    q4_1 = "Q4_1"
    q4_0 = "Q4_0"
    q3_k_l = "Q3_K_L"
    q3_k_m = "Q3_K_M"
    q3_k_s = "Q3_K_S"
    q2_k = "Q2_K"


FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Those that are no integers, by the names of `ExportType`."""

StepOption = Annotated[int | None, typer.Option(help="The checkpoint of this step. Default: the newest verified one.")]


def train(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
) -> None:
    """Train, under torchrun or alone. A run that is started again resumes from its newest verified checkpoint."""
    from bigtrain.config import load_settings

    keep_streams()
    settings = load_settings(config, overrides or [])
    from bigtrain.train import train

    raise typer.Exit(train(settings))


def keep_outputs(
    teacher: Annotated[Path, typer.Argument(help="A run directory, or a folder of `bigtrain import`.")],
    config: Annotated[
        Path, typer.Argument(help="The YAML configuration that will learn from it, with distillation.kept_outputs.")
    ],
    overrides: OverridesArgument = None,
    step: StepOption = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Also readable at this temperature. May be given several times."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a teacher says of each training sample, alone or under torchrun. A start that was killed goes on."""
    from bigtrain.base import launched_rank
    from bigtrain.config import load_settings

    settings, rank = load_settings(config, overrides or []), launched_rank()
    from bigtrain.trained import keep_outputs

    kept = keep_outputs(teacher, settings, step=step, temperatures=temperature or (), rank=rank, report=say)
    if as_json:
        print_json(kept)
    elif kept.complete:
        echo(f"{kept.out}: {kept.files:,} files, {kept.bytes / 1e6:,.1f} MB, kept id {kept.kept_id}")
    else:
        echo(f"{kept.out}: this process has written its {kept.written:,} files; others are missing")


def verify_resume(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "-n", "--processes", min=1, help="How many processes to start. Default: one a GPU, or 2 on a CPU."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="How many steps to train.")] = 12,
    launcher: Annotated[
        str | None,
        typer.Option(
            help="What starts the ranks: a command line to which `-m bigtrain train CONFIG` is added; {n} in it "
            "stands for the number of processes. Default: torchrun on this machine."
        ),
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the runs, under RUN/verify-resume.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a few steps, kill -9, resume, and compare losses and tensors bit for bit, on your own machines."""
    from bigtrain.config import load_settings

    settings = load_settings(config, overrides or [])
    from bigtrain.trials import FOLDER, Launcher, verify_resume

    tried = verify_resume(settings, Launcher.of(launcher, processes), steps=steps, keep=keep, report=say)
    if as_json:
        print_json(tried)
    else:
        rows = [[check.check, "ok" if check.ok else "FAILED", check.found] for check in tried.checks]
        print_table(f"Resuming {settings.run_dir}", ["check", "result", "found"], rows)
    if keep:
        say(f"the runs are under {settings.run_dir / FOLDER}")
    raise typer.Exit(0 if tried.ok else 1)


def profile(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: OverridesArgument = None,
    steps: Annotated[int, typer.Option(min=1, help="How many steps to time, and as many to trace.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="How many steps to do before that.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: RUN-profile, beside the run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Profile a few steps: where their time and memory go. Alone or under torchrun; the run itself is not touched."""
    from bigtrain.config import load_settings

    settings = load_settings(config, overrides or [])
    from bigtrain.cli.profile_tables import print_profile
    from bigtrain.trials import profile

    found = profile(settings, steps=steps, warmup=warmup, out=out, report=say)
    if found is None:  # rank 0 prints
        return
    if as_json:
        print_json(found)
    else:
        print_profile(found)


def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option(help="The step to do again, from 1.")],
    skipped: Annotated[
        bool, typer.Option("--skipped", help="Replay it as it was before the run decided to leave out its batch.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Print the start of the text of each document.")] = False,
    documents: Annotated[int, typer.Option(min=0, help="How many documents to print; 0: all.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Do one step again, exactly, and print the loss of each document; alone or under torchrun, as the run was."""
    from bigtrain.trials import replay

    found = replay(run, step, skipped=skipped, text=text or as_json, report=say)
    if found is None:  # rank 0 prints
        return
    if as_json:
        print_json(found)
    else:
        from bigtrain.cli.replay_table import print_replay

        print_replay(found, documents=documents or len(found.documents), text=text)


def resave_and_train(config: Path, location: str) -> None:
    """The command that ranks of `verify-resume` run with another number of processes or ZeRO stage."""
    from bigtrain.config import load_settings

    settings = load_settings(config)
    from bigtrain.trials import resave_and_train

    raise typer.Exit(resave_and_train(settings, location))


def evaluate(
    run: RunArgument,
    step: StepOption = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            "--yardsticks/--no-yardsticks",
            help="Compare with a unigram and a 5-gram model on the same held-out tokens.",
        ),
    ] = False,
    baseline_runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--baseline-run",
            metavar="RUN",
            help="Compare with another run, of any architecture, on the same held-out tokens. It needs the same "
            "tokenizer and objective. May be given several times.",
        ),
    ] = None,
    translations: Annotated[
        int,
        typer.Option(min=0, help="Translate so many held-out pairs of each source: BLEU, chrF and ROUGE-L."),
    ] = 0,
    answers: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Answer the questions of a file as SQuAD has them: exact match and F1."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the validation loss and perplexity of every source."""
    from bigtrain.trained import evaluate_run

    evaluation = evaluate_run(
        run,
        step,
        with_baselines=baselines,
        baseline_runs=baseline_runs or (),
        translations=translations,
        questions=answers,
    )
    if as_json:
        print_json(evaluation)
        return
    results = [dict(source.as_record()) for source in evaluation.validation]
    scores: list[tuple[str, str, dict[str, float]]] = []
    for row in results:
        simple = cast(dict[str, dict[str, float]], row.pop("baseline metrics", {}))
        scored = {"model": cast(dict[str, float], row.pop("metrics", {}))} | simple
        scores += [(str(row["source"]), name, found) for name, found in scored.items() if found]
        others = cast(dict[str, float], row.pop("run perplexities", {}))
        row |= {f"perplexity of {name}": perplexity for name, perplexity in others.items()}
    columns = list(results[0])
    print_table(
        f"Validation of {run} at step {evaluation.step}",
        columns,
        [[f"{row[c]:,.4g}" if isinstance(row[c], float) else row[c] for c in columns] for row in results],
    )
    if scores:
        names = list(scores[0][2])
        print_table(
            "Scores of labels",
            ["source", "by", *names],
            [[source, name, *(f"{found[each]:.4f}" for each in names)] for source, name, found in scores],
        )
    if (answered := evaluation.answers) is not None:
        print_table(
            f"Answers to the questions of {answers}",
            ["questions", "exact match", "F1"],
            [[answered.questions, f"{answered.exact_match:.1f}", f"{answered.f1:.1f}"]],
        )
    if evaluation.translations:
        print_table(
            "Translations of held-out pairs, and their sources as they are",
            ["source", "pairs", "BLEU", "chrF", "ROUGE-L", "BLEU of copies", "chrF of copies", "ROUGE-L of copies"],
            [[each.source, each.pairs, *(f"{value:.1f}" for value in each.scores)] for each in evaluation.translations],
        )


def generate(
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run directory, or a Hugging Face or imported folder.")
    ],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to continue; - reads one from stdin.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A file with one prompt on each line.")
    ] = None,
    step: StepOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add at most.")] = 100,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="Below 1: likely tokens more often. 0: greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this mass.")] = 0.95,
    min_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from tokens at least this share as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that the text has already become less likely.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End a text before this string. May be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="How many prompts to continue at a time; texts do not depend on it.")
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Continue prompts with a trained model; the text is printed as it is generated. An encoder-decoder reads each
    prompt as a whole, and what it writes is printed below."""
    from bigtrain.cli.texts import InTurn, read_prompts

    texts = read_prompts(prompts or [], prompts_file)
    if not texts:
        raise typer.BadParameter("give a prompt, - or --prompts FILE", param_hint="PROMPT")
    from bigtrain.model import Sampling
    from bigtrain.trained import GeneratedTexts, TextModel

    sampling = Sampling(0.0 if greedy else temperature, top_k, top_p, min_p, repetition_penalty, seed)
    opened = TextModel.open(model, step)
    made = opened.continue_texts(
        texts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or (),
        batch_size=batch_size,
        show=InTurn([opened.shown(text) for text in texts], silent=as_json).show,
    )
    if as_json:
        print_json(GeneratedTexts.of(model, opened.step, made))
    elif full := [str(number) for number, text in enumerate(made.texts, start=1) if text.ended == "context"]:
        say(f"prompt {', '.join(full)}: ended where the model's context of {opened.context} tokens is full")


def export(
    run: RunArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write, or a file whose name ends with .gguf.")
    ],
    to: Annotated[
        Format, typer.Option(help="hf: a Hugging Face folder; gguf: a file for llama.cpp; peft: the adapter alone.")
    ] = Format.hf,
    step: StepOption = None,
    dtype: Annotated[
        ExportType | None, typer.Option(help="gguf: type of the matrices. Default: the precision of the training.")
    ] = None,
    gguf_type: Annotated[
        GgufType | None,
        typer.Option(help="gguf: llama.cpp's name of the type, quantised ones too. In place of --dtype."),
    ] = None,
    merge: Annotated[bool, typer.Option(help="hf, gguf: merge the adapter of the run into the weights.")] = False,
    check: Annotated[
        bool, typer.Option(help="Reload it with transformers, llama.cpp or peft, and compare their results with ours.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint in a format that other tools load, and check that they load the same model."""
    from bigtrain.trained import export_run

    if to is Format.gguf:
        if dtype is not None and gguf_type is not None:
            raise typer.BadParameter("give --dtype or --gguf-type; each names the type of the matrices")
        _export_gguf(run, out, step, dtype or gguf_type, check, merge, as_json)
        return
    if dtype is not None or gguf_type is not None:
        raise typer.BadParameter("a type is for --to gguf; other formats have the precision of the training")
    if to is Format.peft:
        if merge:
            raise typer.BadParameter("is for --to hf and --to gguf; peft takes the adapter as it is")
        _export_peft(run, out, step, check, as_json)
        return
    result = export_run(run, out, step=step, check=check, report=say, merge=merge)
    if as_json:
        print_json(result)
    else:
        echo(f"{out}: {result.parameters:,} parameters of step {result.step} for Hugging Face transformers")
        if sentence := result.sentence:
            echo(sentence)


def import_(
    folder: Annotated[Path, typer.Argument(metavar="HF_DIR", help="config.json, *.safetensors and tokenizer.json.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, for model.init_from.")],
    end_of_text: Annotated[
        str | None, typer.Option(help="The token that ends a document. Default: the one that config.json names.")
    ] = None,
    ignore_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Ignore an unknown key of config.json. May be given several times."),
    ] = None,
    check: Annotated[bool, typer.Option(help="Load HF_DIR with transformers and compare its logits with ours.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Convert a Hugging Face model, to train it further."""
    from bigtrain.trained import import_model

    result = import_model(folder, out, end_of_text=end_of_text, ignored=ignore_key or [], check=check, report=say)
    if as_json:
        print_json(result)
        return
    echo(f"{out}: {result.parameters:,} parameters, {result.family}")
    if sentence := result.sentence:
        echo(sentence)
    echo(f"to go on training it, see {result.model}")


def _export_peft(run: Path, out: Path, step: int | None, check: bool, as_json: bool) -> None:
    from bigtrain.trained import export_run_to_peft

    result = export_run_to_peft(run, out, step=step, check=check, report=say)
    if as_json:
        print_json(result)
        return
    echo(
        f"{out}: {result.method} of {result.modules} modules, {result.parameters:,} parameters of step {result.step}, "
        f"for peft on {result.base}"
    )
    if sentence := result.sentence:
        echo(sentence)


def _export_gguf(
    run: Path,
    out: Path,
    step: int | None,
    kind: ExportType | GgufType | None,
    check: bool,
    merge: bool,
    as_json: bool,
) -> None:
    from bigtrain.trained import export_run_to_gguf

    name = None if kind is None else FLOATS.get(kind.value, kind.value)
    floats = name is None or name in FLOATS.values()
    result = export_run_to_gguf(
        run,
        out,
        step=step,
        dtype=name if floats else None,
        check=check,
        report=say,
        merge=merge,
        quantised=None if floats else name,
    )
    if as_json:
        print_json(result)
        return
    echo(
        f"{result.out}: {result.parameters:,} parameters of step {result.step} in {result.dtype}, "
        f"{result.bytes / 1e6:,.1f} MB, llama.cpp's network {result.architecture}"
    )
    if result.logit_difference is not None and not floats:
        echo(
            f"loaded with llama.cpp: by quantisation its logits differ by {result.logit_difference:.2g} of their "
            "standard deviation; before it they were ours"
        )
    elif result.logit_difference is not None:
        echo(
            f"loaded with llama.cpp: it cuts text as we do, its logits differ by {result.logit_difference:.2g} of "
            f"their standard deviation, its {result.greedy_tokens} greedy tokens are ours or nearly tied with them"
        )


def report(
    run: RunArgument,
    samples: Annotated[
        int, typer.Option(min=0, help="How many starts of held-out documents the newest checkpoint continues.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write RUN/report.html, one page with all curves, and RUN/loss.svg; print a summary."""
    from bigtrain.report import write_report

    summary = write_report(run, samples)
    if as_json:
        print_json(summary.numbers)
    else:
        echo(str(summary))


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with run directories below it.")] = Path(
        "runs"
    ),
    as_json: JsonOption = False,
) -> None:
    """List the runs below a folder with their step, their state and their last event."""
    from bigtrain.rundir import list_runs

    found = list_runs(folder)
    if as_json:
        print_json(found)
    elif not found:
        say(f"there are no runs below {folder}")
    else:
        from bigtrain.cli.runs_table import COLUMNS, row_of

        print_table(f"{len(found)} run(s) below {folder}", COLUMNS, [row_of(state, folder) for state in found])
