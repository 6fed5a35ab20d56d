"""Chat templates: how conversations become text, and which characters of it an assistant wrote.

A template is a Jinja program that came with a tokenizer. It runs in Jinja's sandbox, as in transformers, with the same
names: `messages`, `tools`, `add_generation_prompt`, the special tokens, `tojson`, `raise_exception`. One thing differs.
`strftime_now` is missing, since data that depend on the day of their build would not be the same twice.

What an assistant wrote is between `{% generation %}` and `{% endgeneration %}`, where a template has that. Otherwise it
is what each of its messages adds to the text of the messages before it, after the prompt for an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bigtrain.base import BigtrainError, read_json
from bigtrain.data.format.documents import Conversation, LabelledSpan, Segment
from bigtrain.data.format.labels import ASSISTANT, OTHER

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names of special tokens in a `tokenizer_config.json`, as templates use them."""
ASSISTANT_ROLE = "assistant"
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning, as in transformers. Templates read the first or the second."""


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens by the names that templates have for them, from the folder of a tokenizer; maybe none."""
    try:
        configuration = read_json(folder / "tokenizer_config.json")
    except FileNotFoundError:
        return {}
    found = configuration if isinstance(configuration, dict) else {}
    tokens = {name: found.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the special tokens that it writes."""

    source: str
    """The Jinja program."""
    special_tokens: Mapping[str, str]
    """By the names that it has for them, such as `bos_token`."""

    def render(self, conversation: Conversation, where: str) -> Segment:
        """The text of a conversation, with spans of what its assistant wrote.

        Args:
            conversation: the messages and tools.
            where: its file and line, for messages.

        Raises:
            BigtrainError: the template refuses it, or does not say where an answer begins or ends.
        """
        messages = [_plain(message) for message in conversation.messages]
        text, spans = self._run(messages, conversation.tools, where)
        if not self._marks_generation:
            spans = self._by_prefixes(messages, conversation.tools, text, where)
        labelled = tuple(LabelledSpan(start, end, ASSISTANT) for start, end in spans if start < end)
        if not labelled:
            raise BigtrainError(
                f"{where}: the chat template writes nothing of the assistant's messages",
                found=text[:200],
                fix="check the roles of the messages, or name another file at data.tokenizer.chat_template",
            )
        return Segment(text, OTHER, labelled)

    def prompt(self, conversation: Conversation, where: str) -> str:
        """The text of a conversation up to where the assistant's next answer begins. Raises BigtrainError."""
        return self._run([_plain(message) for message in conversation.messages], conversation.tools, where, True)[0]

    @cached_property
    def _environment(self) -> Any:
        return _environment()

    @cached_property
    def _program(self) -> Any:
        from jinja2 import TemplateError

        try:
            return self._environment.from_string(self.source)
        except TemplateError as error:
            raise BigtrainError(
                "the chat template is not valid Jinja",
                found=f"line {getattr(error, 'lineno', '?')}: {error}"[:300],
                wanted="a template as transformers reads it",
                fix="correct it, and name the file at data.tokenizer.chat_template",
            ) from None

    @cached_property
    def _marks_generation(self) -> bool:
        """Whether the template says itself what an assistant wrote."""
        return re.search(r"\{\%-?\s*generation\s*-?\%\}", self.source) is not None

    def _run(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any],
        where: str,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of messages, and the spans of generation blocks in it. Raises BigtrainError."""
        program = self._program
        values = {
            **self.special_tokens,
            "messages": messages,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        self._environment.generated = (blocks, spans)
        try:
            for block in program.generate(values):
                blocks.append(block)  # one at a time, since a generation block asks how far the text has come
        except Exception as error:  # whatever a template does
            today = "strftime_now" in str(error)
            raise BigtrainError(
                f"{where}: the chat template does not take this conversation",
                found=f"{type(error).__name__}: {error}"[:300],
                wanted="roles and fields that the template knows"
                if not today
                else "a template that does not ask for today's date, with which data would differ from day to day",
                fix="correct the conversation, or name a corrected template at data.tokenizer.chat_template",
            ) from None
        return "".join(blocks), spans

    def _by_prefixes(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], text: str, where: str
    ) -> list[tuple[int, int]]:
        """The spans of an assistant's messages in a text: what each adds to the text of the messages before it."""
        spans = []
        for number, message in enumerate(messages):
            if message.get("role") != ASSISTANT_ROLE:
                continue
            before = self._run(messages[:number], tools, where, True)[0] if number else ""
            after = self._run(messages[: number + 1], tools, where)[0]
            if not (after.startswith(before) and text.startswith(after)):
                raise BigtrainError(
                    f"{where}: what the chat template writes of the first messages is not how the whole text begins",
                    found=_difference(before, after) if not after.startswith(before) else _difference(after, text),
                    wanted="a template that marks what the assistant wrote: {% generation %} ... {% endgeneration %}",
                    fix="add these marks in a copy of it, and name the copy at data.tokenizer.chat_template",
                )
            spans.append((len(before), len(after)))
        return spans


def _difference(prefix: str, text: str) -> str:
    place = next((n for n, (one, other) in enumerate(zip(prefix, text, strict=False)) if one != other), len(text))
    return f"message texts differ at character {place:,}: {prefix[place : place + 60]!r}, {text[place : place + 60]!r}"


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers gives it to a template: without nulls, its reasoning under both names."""
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[key] for key in _REASONING if key in present), None)
    return present if reasoning is None else {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _environment() -> Any:
    """Jinja's sandbox with what templates of transformers use."""
    from jinja2 import Environment, TemplateError, nodes, pass_eval_context
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The statement `{% generation %}`, which records the characters that its block writes."""

        tags = {"generation"}  # noqa: RUF012  # as the base class has it

        def __init__(self, environment: Environment) -> None:
            super().__init__(environment)
            environment.extend(generated=([], []))

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _written(self, context: nodes.EvalContext, caller: Any) -> str:
            written: str = caller()
            blocks, spans = self.environment.generated  # type: ignore[attr-defined]
            start = sum(len(block) for block in blocks)
            spans.append((start, start + len(written)))
            return written

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment
