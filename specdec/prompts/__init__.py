"""What models are asked: prompts from files and datasets, and their rendering into tokens."""

from specdec.prompts.load import Message, Prompt, load_prompts, read_message
from specdec.prompts.render import Rendered, messages_for_turn, render_turn

__all__ = [
    "Message",
    "Prompt",
    "Rendered",
    "load_prompts",
    "messages_for_turn",
    "read_message",
    "render_turn",
]
