"""report_tables.py: the figures of a long report as tables for a terminal.

    python eval.py report RUN --data pairs.jsonl --details
    python eval.py report RUN --data pairs.jsonl --by language

A table has a line for each part, numbers first and the name last: a name may be of any length, and
it comes from the data. So control characters, which could change the terminal, are shown as JSON.
Of a field with very many values, such as an id, those with the most pairs are printed, and a line
says how many more there are; --output FILE keeps all of them.

extras/report_details.py and extras/leaderboards/ compute the figures.
tests/extras/test_report_details.py compares what is printed with them.
"""
import json

MOST_LINES = 50  # of a table by a field


def print_details(figures):
    """The tables and the mistakes."""
    print_table("by confidence σ(|gap|)", figures["calibration"]["table"])
    print_table("by tokens of the longer response, with its prompt", figures["by_length"])
    print_by(figures["by"], figures["leaderboards"])
    for name, board in figures["leaderboards"].items():
        print_leaderboard(name, board)
    all_rows = {"rows": figures["rows_with_a_best"], "best_wins": figures["best_wins"]}
    print_table("rows with one best response", [all_rows])
    for mistake in figures["mistakes"]:
        print("\nsurest and wrong")
        for name, value in mistake.items():
            print(f"  {name:<9} {shown(value)}")


def print_by(by, boards):
    """Accuracy by the values of each field, and the mean of the lines."""
    mean_name = "their mean"
    if boards:
        mean_name += f" (not the score of {', '.join(boards)})"
    for field, parts in by.items():
        column = f"field {field}" if field in ("pairs", "accuracy", "best_wins") else field
        lines = [part | {column: name} for name, part in parts.items()]
        most = sorted(lines, key=lambda line: -line["pairs"])[:MOST_LINES]
        printed = [line for line in lines if line in most]
        print_table(f"by {field}", [*printed, mean_line(lines) | {column: mean_name}])
        if len(lines) > MOST_LINES:
            print(f"and {len(lines) - MOST_LINES} values with fewer pairs (--output has them all)")


def mean_line(lines):
    """The mean of accuracy and best_wins, where each line weighs the same."""
    means = {"pairs": ""}
    for key in ("accuracy", "best_wins"):
        values = [line[key] for line in lines if line[key] is not None]
        means[key] = sum(values) / len(values) if values else None
    return means


def print_leaderboard(name, board):
    """What the rule of a benchmark gives (extras/leaderboards/)."""
    lines = [part | {"part": part_name} for part_name, part in board["parts"].items()]
    if board["total"]:
        lines.append(board["total"] | {"part": "total"})
    title = f"{name}, by {board['by']}"
    if lines:
        print_table(title, lines)
    else:
        print(f"\n{title}: nothing can be computed")
    for problem in board["problems"]:
        print(f"no total: {problem}")
    print(f"{board['rows']} rows (published: {board['rows_published']})")
    if board["other_rows"]:
        print(f"{board['other_rows']} rows of the file are other data, and not in these figures")
    if board.get("matrix"):
        title = f"{name}: how often a chosen response is above a rejected one in the style"
        print_table(title, board["matrix"])


def print_beside_each_other(names, reports):
    """The main figures of several files, a line a file."""
    lines = []
    for name, figures in zip(names, reports):
        line = {key: figures[key] for key in ("pairs", "accuracy")}
        line["from"], line["to"] = figures["accuracy_ci95"]
        line["longer wins"] = figures["longer_wins_accuracy"]
        line["loss"] = figures["loss"]
        line["ece"] = figures["calibration"]["ece"]
        lines.append(line | {"data": name})
    print_table("all files (from, to: 95% interval of the accuracy)", lines)


def print_table(title, lines):
    """Dictionaries with the same keys: a line each, in columns under these keys.

    Texts of any length come last.
    """
    print(f"\n{title}")
    print(*[f"{key:>11}" for key in lines[0]])
    for line in lines:
        print(*[f"{shown(value):>11}" for value in line.values()])


def shown(value):
    """A value as it is printed: three digits after the point, a text in one line."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)[:300]
    if not text.isprintable():  # escape codes would change the terminal
        text = json.dumps(text)
    return text
