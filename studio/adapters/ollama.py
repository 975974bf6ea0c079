"""Ollama's Modelfile beside a GGUF."""

MODELFILE = "Modelfile"
CHATML_MARK = "<|im_start|>"
CHATML = '''TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
PARAMETER stop "<|im_end|>"
PARAMETER stop "<|im_start|>"
'''


def modelfile(model: str, template: str, adapter: str = "", note: str = "") -> str:
    """What `ollama create` reads.

    Args:
        model: the GGUF of FROM. template: the base's chat template; ChatML is written out, others Ollama reads from the GGUF.
        adapter: the GGUF of ADAPTER; none where it is empty. note: a comment, in one line.
    """
    lines = [f"# {note}"] if note else []
    lines.append(f"FROM ./{model}")
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    lines += ["PARAMETER temperature 0.7", "PARAMETER top_p 0.9"]
    return "\n".join(lines) + "\n" + (CHATML if CHATML_MARK in template else "")
