"""The picture at the top of the README: one prompt, two responses, one loss.

    python docs/pictures/idea.py        writes idea.svg beside this file
"""
from pathlib import Path

FILE = Path(__file__).with_suffix(".svg")
WIDTH, HEIGHT = 760, 250
# Blue and orange can be told apart by nearly everybody. In the dark only ink and paper change.
STYLE = """
  text { font: 14px sans-serif; fill: #222; text-anchor: middle }
  .small { font-size: 12px }
  rect { fill: #fff; stroke: #222; stroke-width: 1.5 }
  .arrow { fill: none; stroke: #222; stroke-width: 1.5; marker-end: url(#tip) }
  .tip { fill: #222 }
  .chosen { stroke: #3a86c8; stroke-width: 3 }
  .rejected { stroke: #e08214; stroke-width: 3; stroke-dasharray: 6 4 }
  @media (prefers-color-scheme: dark) {
    text, .tip { fill: #ddd }
    rect { fill: #222 }
    .arrow, .plain { stroke: #ddd }
  }
"""


def box(x: int, y: int, width: int, kind: str, *lines: str) -> str:
    """A box of 56 in height, with one or two lines of text."""
    found = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="56" rx="8"/>\n'
    first = y + 33 if len(lines) == 1 else y + 24
    for number, line in enumerate(lines):
        style = "small" if number else "text"
        height = first + 19 * number
        found += f'<text class="{style}" x="{x + width // 2}" y="{height}">{line}</text>\n'
    return found


def arrow(x: int, y: int, to_x: int, to_y: int) -> str:
    """A straight arrow."""
    return f'<path class="arrow" d="M {x} {y} L {to_x} {to_y}"/>\n'


def picture() -> str:
    """The whole file."""
    drawn = [
        box(10, 97, 150, "plain", "prompt x", "Which colour is grass?"),
        arrow(160, 115, 212, 70),
        arrow(160, 135, 212, 180),
        box(218, 37, 150, "chosen", "It is green.", "y_w: a person chose it"),
        box(218, 157, 150, "rejected", "It is red.", "y_l: and not this one"),
        arrow(368, 65, 422, 65),
        arrow(368, 185, 422, 185),
        box(428, 37, 120, "chosen", "reward r_w", "reward model"),
        box(428, 157, 120, "rejected", "reward r_l", "the same model"),
        arrow(548, 70, 602, 115),
        arrow(548, 180, 602, 135),
        box(608, 97, 142, "plain", "−log σ(r_w − r_l)", "small if r_w is larger"),
    ]
    tip = '<path class="tip" d="M 0 0 L 8 4 L 0 8 z"/>'
    marker = f'<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" ' \
             f'markerHeight="8" orient="auto">{tip}</marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    title = "<title>A prompt, two responses, two rewards, one loss</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", f"<defs>{marker}</defs>",
                      "".join(drawn), "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(picture(), "utf-8")
