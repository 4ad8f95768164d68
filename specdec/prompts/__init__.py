"""What models are asked: prompts from files and datasets, and their rendering into tokens."""

from specdec.prompts.answers import answer_of
from specdec.prompts.load import Conversation, Prompt, load_prompts, read_conversation
from specdec.prompts.message import Message
from specdec.prompts.render import AUTO, Rendered, Rendering, messages_for_turn, render_turn
from specdec.prompts.rows import Row

__all__ = [
    "AUTO",
    "Conversation",
    "Message",
    "Prompt",
    "Rendered",
    "Rendering",
    "Row",
    "answer_of",
    "load_prompts",
    "messages_for_turn",
    "read_conversation",
    "render_turn",
]
