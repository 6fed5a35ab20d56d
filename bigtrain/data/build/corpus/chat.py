"""Corpus kind `chat`: conversations in JSON lines, as `messages` (OpenAI's form) or `conversations` (ShareGPT's)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigtrain.base import BigtrainError
from bigtrain.config import SourceSettings
from bigtrain.data.build.corpus.corpus import Corpus
from bigtrain.data.build.corpus.jsonl import corpus_of_lines
from bigtrain.data.build.corpus.records import Origin, valid_unicode
from bigtrain.data.format.chat_template import ASSISTANT_ROLE
from bigtrain.data.format.documents import Conversation, Document

FORMS = ("messages", "conversations")
ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT_ROLE,
    "chatgpt": ASSISTANT_ROLE,
    "assistant": ASSISTANT_ROLE,
    "model": ASSISTANT_ROLE,
    "function_call": ASSISTANT_ROLE,
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""The roles of ShareGPT's names."""


@dataclass(frozen=True)
class _Conversations:
    def __call__(self, record: Any, origin: Origin) -> Document:
        form = next((form for form in FORMS if isinstance(record, dict) and form in record), None)
        if form is None:
            names = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise BigtrainError(
                f"{origin.where} has no conversation",
                found=names[:200],
                wanted="messages with role and content, or conversations with from and value",
                fix="write each conversation as an object with a list of messages",
            )
        try:
            record = valid_unicode(record)
            json.dumps(record, allow_nan=False)
        except (RecursionError, ValueError) as error:
            raise BigtrainError(
                f"{origin.where} has a value that chat templates do not take",
                found=f"{type(error).__name__}: {error}"[:200],
                wanted="JSON without NaN, and not nested hundreds deep",
                fix="correct the conversation, or leave it out",
            ) from None
        items = record[form]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BigtrainError(
                f"{origin.where}: {form} is not a list of messages", found=str(items)[:200], wanted="a list of objects"
            )
        messages = tuple(_message(item, form, origin.where) for item in items)
        if form == "conversations" and isinstance(record.get("system"), str):
            messages = ({"role": "system", "content": record["system"]}, *messages)
        if not any(message["role"] == ASSISTANT_ROLE for message in messages):
            raise BigtrainError(
                f"{origin.where} has no message of an assistant, so there is nothing to learn from it",
                found=f"roles {', '.join(message['role'] for message in messages) or 'none'}"[:200],
                wanted=f"a message of role {ASSISTANT_ROLE}",
                fix="leave the conversation out, or correct the roles",
            )
        tools = _tools(record.get("tools"))
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BigtrainError(
                f"{origin.where}: tools is not a list of objects",
                found=str(tools)[:200],
                wanted="JSON schemas of tools",
            )
        text = "\n".join(part for message in messages for part in _texts(message.get("content")))
        return Document(
            text, origin.name, origin.position, conversation=Conversation(messages=messages, tools=tuple(tools))
        )


def _message(item: dict[str, Any], form: str, where: str) -> dict[str, Any]:
    """A message with a role."""
    role = item.get("role") if form == "messages" else ROLES.get(str(item.get("from", "")).lower())
    if not isinstance(role, str) or not role:
        raise BigtrainError(
            f"{where} has a message without a role that is known",
            found=str(item.get("role" if form == "messages" else "from"))[:100],
            wanted="a role such as user or assistant" if form == "messages" else f"from {', '.join(ROLES)}",
            fix="correct the message",
        )
    if form == "messages":
        return item
    if not isinstance(item.get("value"), str):
        raise BigtrainError(
            f"{where} has a message without text", found=str(item.get("value"))[:100], wanted="a string as value"
        )
    return {"role": role, "content": item["value"]}


def _tools(value: Any) -> Any:
    """The tools of a record, which ShareGPT's form has as a text of JSON."""
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value or []


def _texts(content: Any) -> list[str]:
    """The texts of a message's content, which may be a list of parts."""
    if isinstance(content, list):
        return [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return [content] if isinstance(content, str) else []


def chat(source: SourceSettings) -> Corpus:
    """Each line is one conversation, its position the line's index.

    Raises:
        BigtrainError: a line has no conversation, or one without an assistant.
    """
    return corpus_of_lines(source, _Conversations(), FORMS)
