"""What models are asked: prompts from files and datasets, and their rendering into tokens."""

from specdec.prompts.answers import answer_of
from specdec.prompts.load import Prompt, load_prompts
from specdec.prompts.message import Message, read_message
from specdec.prompts.render import AUTO, Rendered, Rendering, messages_for_turn, render_turn

__all__ = [
    "AUTO",
    "Message",
    "Prompt",
    "Rendered",
    "Rendering",
    "answer_of",
    "load_prompts",
    "messages_for_turn",
    "read_message",
    "render_turn",
]
