"""Prompts from files and datasets, and their rendering into tokens."""

from specdec.prompts.answers import answer_of
from specdec.prompts.load import Conversation, Prompt, load_prompts, read_conversation
from specdec.prompts.message import Message, read_message
from specdec.prompts.render import (
    AUTO,
    Rendered,
    Rendering,
    by_template,
    messages_for_turn,
    render_turn,
    require_options,
)
from specdec.prompts.roles import Roles
from specdec.prompts.rows import FILES, DatasetPart, SourceRow, kind_of, scan_rows

__all__ = [
    "AUTO",
    "FILES",
    "Conversation",
    "DatasetPart",
    "Message",
    "Prompt",
    "Rendered",
    "Rendering",
    "Roles",
    "SourceRow",
    "answer_of",
    "by_template",
    "kind_of",
    "load_prompts",
    "messages_for_turn",
    "read_conversation",
    "read_message",
    "render_turn",
    "require_options",
    "scan_rows",
]
