"""Eight chat templates of unlike habits, of our own, and a tokenizer that knows their marks."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|channel|>"),
    *("<|message|>", "<|call|>", "<|return|>", "<|head|>", "<|eot|>", "[INST]", "[/INST]"),
    *("[TOOLS]", "[CALLS]", "[RESULTS]", "<turn>", "</turn>", "<|user|>", "<|bot|>"),
)
MARKS = ("<think>", "</think>")  # ordinary tokens, as most models have them

WORDS = """{%- macro words(content) -%}
{%- if content is string -%}{{ content }}{%- elif content is iterable -%}
{%- for part in content -%}{{ part.text if part.type == 'text' else '<' ~ part.type ~ '>' }}
{%- endfor -%}{%- endif -%}{%- endmacro -%}"""

# Every role as it is, content as it is: what is no text fails within the template.
CHATML = """{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# Tools in the first turn, calls as JSON, one at a time; asks whether there are `tool_calls`.
HEADERS = (
    WORDS
    + """{{- bos_token -}}
{%- if tools is defined and tools -%}
{{ '<|head|>tools<|head|>' }}{% for t in tools %}{{ t | tojson }}{{ '\\n' }}{% endfor %}
{{- '<|eot|>' }}
{%- endif -%}
{%- for m in messages -%}
{%- if 'tool_calls' in m -%}
{%- if m.tool_calls | length != 1 -%}{{ raise_exception('one call at a time') }}{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
{{ '<|head|>assistant<|head|>' ~ {'name': call.name, 'parameters': call.arguments} | tojson }}
{{- '<|eot|>' -}}
{%- elif m.role in ('tool', 'ipython') -%}
{{ '<|head|>ipython<|head|>' ~ (m.content | tojson if m.content is mapping else words(m.content)) }}
{{- '<|eot|>' -}}
{%- else -%}
{{ '<|head|>' ~ m.role ~ '<|head|>' ~ words(m.content) | trim ~ '<|eot|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|head|>assistant<|head|>' }}{%- endif -%}"""
)

# Tools before the last user's message, the system's words within it, ids of calls.
INST = (
    WORDS
    + """{{- bos_token -}}
{%- set system = messages[0] if messages[0].role == 'system' else none -%}
{%- set rest = messages[1:] if system else messages -%}
{%- for m in rest -%}
{%- if m.role == 'user' -%}
{%- if loop.last and tools -%}{{ '[TOOLS]' ~ tools | tojson }}{%- endif -%}
{{- '[INST]' -}}
{%- if loop.last and system -%}{{ words(system.content) ~ '\\n\\n' }}{%- endif -%}
{{- words(m.content) ~ '[/INST]' -}}
{%- elif m.role == 'tool' -%}
{{- '[RESULTS]' ~ {'content': words(m.content), 'call_id': m.tool_call_id} | tojson -}}
{%- elif m.tool_calls -%}
{{- '[CALLS]' ~ m.tool_calls | tojson ~ eos_token -}}
{%- else -%}{{- words(m.content) ~ eos_token -}}{%- endif -%}
{%- endfor -%}"""
)

# Thoughts stay behind the last user's message only; an option leaves them out for good.
THINKING = (
    WORDS
    + """{%- if tools -%}
{{ '<|im_start|>system\\n' ~ tools | tojson ~ '<|im_end|>\\n' }}
{%- endif -%}
{%- set last = namespace(user=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- set content = words(m.content) -%}
{{- '<|im_start|>' ~ m.role ~ '\\n' -}}
{%- if m.role == 'assistant' and '</think>' in content -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if m.reasoning_content is defined and loop.index0 > last.user -%}
{{- '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}
{%- for call in m.tool_calls or [] -%}{{ '\\n' ~ call.function | tojson }}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}"""
)

# No system, no tools, user and model in turn: refuses everything else.
ALTERNATING = (
    WORDS
    + """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('user and assistant must take turns') }}
{%- endif -%}
{{- '<turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' -}}
{{- words(m.content) | trim ~ '</turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\\n' }}{%- endif -%}"""
)

# Channels for thoughts, calls and the final part; refuses content that has their marks.
CHANNELS = (
    WORDS
    + """{%- if tools -%}
{{ '<|start|>developer<|message|>' ~ tools | tojson ~ '<|end|>' }}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if '<|channel|>' in words(m.content) -%}
{{ raise_exception('marks within content') }}
{%- endif -%}
{%- if m.thinking -%}
{{ '<|start|>assistant<|channel|>analysis<|message|>' ~ m.thinking ~ '<|end|>' }}
{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{{ '<|start|>assistant to=' ~ call.function.name ~ '<|channel|>commentary json<|message|>' }}
{{- call.function.arguments | tojson ~ '<|call|>' -}}
{%- endfor -%}
{%- if m.content -%}
{{ '<|start|>assistant<|channel|>final<|message|>' ~ words(m.content) ~ '<|end|>' }}
{%- endif -%}
{%- else -%}
{{ '<|start|>' ~ (m.name if m.role == 'tool' else m.role) }}
{{- '<|message|>' ~ words(m.content) ~ '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"""
)

# All systems at the beginning, thoughts of earlier turns cut at their mark, and begun by itself.
BEGUN = (
    WORDS
    + """{{- bos_token -}}
{%- for m in messages if m.role == 'system' -%}{{ words(m.content) }}{%- endfor -%}
{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'assistant' -%}
{{ '<|bot|>' ~ words(m.content).split('</think>')[-1] }}
{%- for call in m.tool_calls or [] -%}
{{ call.function.name ~ '\\n' ~ call.function.arguments | tojson }}
{%- endfor -%}
{{- '</s>' -}}
{%- elif m.role == 'tool' -%}{{ '[RESULTS]' ~ words(m.content) }}
{%- else -%}{{ '<|user|>' ~ words(m.content) }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|bot|><think>\\n' }}{%- endif -%}"""
)

# Documents to cite, and each whole message as JSON, key by key as the row has it.
CITING = """{{- bos_token -}}
{%- for d in documents or [] -%}
{{ '[RESULTS]' ~ loop.index0 ~ ' ' ~ d.title ~ '\\n' ~ d.text }}
{%- endfor -%}
{%- for t in tools or [] -%}{{ '[TOOLS]' ~ t.function.name }}{%- endfor -%}
{%- for m in messages -%}{{ '<turn>' ~ m | tojson ~ '</turn>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>' }}{%- endif -%}"""

TEMPLATES = {
    "chatml": CHATML, "headers": HEADERS, "inst": INST, "thinking": THINKING,
    "alternating": ALTERNATING, "channels": CHANNELS, "begun": BEGUN, "citing": CITING,
}  # fmt: skip


def tokenizer_of_bytes(template: str | None) -> PreTrainedTokenizerFast:
    """Make every byte a token, and every mark."""
    vocab = {char: byte for byte, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIALS])
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIALS[2:]),
    )
    tokenizer.chat_template = template
    return tokenizer
