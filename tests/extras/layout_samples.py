"""One row or more of every layout in extras/layouts/, and the native row that it means.

SAMPLES: name -> (row, native row). The texts are made up, the fields are those of the data sets.
"""


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


QUESTION = [user("Which metal is liquid?")]
GOOD, BAD = [assistant("Mercury is.")], [assistant("Iron is.")]

Q, G, B = "Which metal is liquid?", "Mercury is.", "Iron is."
PAIR = {"prompt": Q, "chosen": G, "rejected": B}
MESSAGES = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}
TIE = {"prompt": Q, "responses": [G, B], "scores": [0, 0]}

FIRST_ROUND = [*QUESTION, *GOOD]
OTHER_ROUND = [*QUESTION, *BAD]
SECOND_ROUND = [user("And at night?"), assistant("Mercury too.")]
OTHER_SECOND = [user("And at night?"), assistant("Iron too.")]

POST = {"id": "t3", "subreddit": "AskScience", "title": "Metals", "post": Q, "site": None}
NEWS = {"id": "n1", "title": "Metals", "article": "Mercury is liquid.", "subreddit": None}
FORUM_PROMPT = "SUBREDDIT: r/AskScience\n\nTITLE: Metals\n\nPOST: Which metal is liquid?\n\nTL;DR:"
NEWS_PROMPT = "TITLE: Metals\n\nARTICLE: Mercury is liquid.\n\nTL;DR:"
SUMMARIES = [{"text": B, "policy": "p1", "note": None}, {"text": G, "policy": "p2", "note": None}]

ARENA = {"model_a": "m1", "model_b": "m2", "judge": "j", "language": "English"}
FIFTY_FIVE = {
    "id": 1,
    "model_a": "m1",
    "prompt": '["Which metal is liquid?", "And at night?"]',
    "response_a": '["Mercury is.", "Mercury too."]',
    "response_b": '["Iron is.", null]',
}
WEATHER = {"type": "function", "function": {"name": "weather"}}


def parts(text):
    """Content in parts, as newer arena data have it: tables write the fields of pictures too."""
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


def in_parts(messages):
    return [message | {"content": parts(message["content"])} for message in messages]


SAMPLES = {
    "OpenAI's preference format": (
        {"input": {"messages": QUESTION, "tools": []}, "preferred_output": GOOD,
         "non_preferred_output": BAD},
        MESSAGES,
    ),
    "messages as text": (
        {"prompt": '[{"role": "user", "content": "Which metal is liquid?"}]',
         "chosen": G, "rejected": B},
        {"prompt": QUESTION, "chosen": G, "rejected": B},
    ),
    "HelpSteer2, several turns": (
        {"prompt": f"{Q}\n<extra_id_1>Assistant\n{G}\n<extra_id_1>User\nAnd at night?",
         "responses": ["Too.", "No."], "scores": [4, 1]},
        {"prompt": [*FIRST_ROUND, user("And at night?")],
         "responses": ["Too.", "No."], "scores": [4, 1]},
    ),
    # ---------------------------------------------------------------- a verdict on two answers
    "summarize_from_feedback": (
        {"info": POST, "summaries": SUMMARIES, "choice": 1, "worker": "w"},
        {"prompt": FORUM_PROMPT, "chosen": G, "rejected": B, "worker": "w"},
    ),
    "summarize_from_feedback, news": (
        {"info": NEWS, "summaries": SUMMARIES, "choice": 0},
        {"prompt": NEWS_PROMPT, "chosen": B, "rejected": G},
    ),
    "WebGPT": (
        {"question": {"id": "q1", "full_text": Q}, "answer_0": B, "answer_1": G,
         "score_0": -1.0, "score_1": 1.0, "tokens_0": {"prefix": [1]}},
        PAIR | {"tokens_0": {"prefix": [1]}},
    ),
    "WebGPT, the first": (
        {"question": {"full_text": Q}, "answer_0": G, "answer_1": B, "score_0": 0.5, "score_1": 0},
        PAIR,
    ),
    "WebGPT, tie": (
        {"question": {"full_text": Q}, "answer_0": G, "answer_1": B, "score_0": 0, "score_1": 0.0},
        TIE,
    ),
    "SHP": (
        {"history": Q, "human_ref_A": G, "human_ref_B": B, "labels": 1, "score_A": 9},
        PAIR | {"score_A": 9},
    ),
    "SHP, the second": ({"history": Q, "human_ref_A": B, "human_ref_B": G, "labels": 0}, PAIR),
    "PKU-SafeRLHF": (
        {"prompt": Q, "response_0": B, "response_1": G, "better_response_id": 1,
         "safer_response_id": 0},
        PAIR | {"safer_response_id": 0},
    ),
    "PKU-SafeRLHF, the first": (
        {"prompt": Q, "response_0": G, "response_1": B, "better_response_id": 0},
        PAIR,
    ),
    "HelpSteer2 preference": (
        {"prompt": Q, "response_1": G, "response_2": B, "preference_strength": -3,
         "split": "train"},
        PAIR | {"split": "train"},
    ),
    "HelpSteer2 preference, the second": (
        {"prompt": Q, "response_1": B, "response_2": G, "preference_strength": 1},
        PAIR,
    ),
    "HelpSteer2 preference, tie": (
        {"prompt": Q, "response_1": G, "response_2": B, "preference_strength": 0},
        TIE,
    ),
    "HelpSteer3": (
        {"context": QUESTION, "response1": G, "response2": B, "overall_preference": -1,
         "domain": "general"},
        PAIR | {"prompt": QUESTION, "domain": "general"},
    ),
    "HelpSteer3, the second": (
        {"context": QUESTION, "response1": B, "response2": G, "overall_preference": 3},
        PAIR | {"prompt": QUESTION},
    ),
    "HelpSteer3, tie": (
        {"context": QUESTION, "response1": G, "response2": B, "overall_preference": 0},
        TIE | {"prompt": QUESTION},
    ),
    "JudgeBench": (
        {"question": Q, "response_A": G, "response_B": B, "label": "A>B", "source": "math"},
        PAIR | {"source": "math"},
    ),
    "JudgeBench, the second": (
        {"question": Q, "response_A": B, "response_B": G, "label": "B>A"},
        PAIR,
    ),
    "PPE preference": (
        {"prompt": Q, "response_1": B, "response_2": G, "winner": "model_b", "hard_prompt": True},
        PAIR | {"hard_prompt": True},
    ),
    "PPE preference, tie": (
        {"prompt": Q, "response_1": G, "response_2": B, "winner": "tie (bothbad)"},
        TIE,
    ),
    "Chatbot Arena": (
        {"conversation_a": FIRST_ROUND, "conversation_b": OTHER_ROUND, "winner": "model_a",
         "turn": 1} | ARENA,
        MESSAGES | ARENA,
    ),
    "Chatbot Arena, both bad": (
        {"conversation_a": FIRST_ROUND, "conversation_b": OTHER_ROUND, "winner": "tie (bothbad)"},
        {"prompt": QUESTION, "responses": [GOOD, BAD], "scores": [0, 0]},
    ),
    "arena-human-preference-140k": (
        {"conversation_a": in_parts(OTHER_ROUND), "conversation_b": in_parts(FIRST_ROUND),
         "winner": "model_b", "is_code": False},
        MESSAGES | {"is_code": False},
    ),
    "arena-human-preference-140k, both bad": (
        {"conversation_a": in_parts(FIRST_ROUND), "conversation_b": in_parts(OTHER_ROUND),
         "winner": "both_bad"},
        {"prompt": QUESTION, "responses": [GOOD, BAD], "scores": [0, 0]},
    ),
    "MT-bench, first round": (
        {"conversation_a": FIRST_ROUND + SECOND_ROUND, "conversation_b": OTHER_ROUND + OTHER_SECOND,
         "winner": "model_a", "turn": 1},
        MESSAGES,
    ),
    "MT-bench, both rounds": (
        {"conversation_a": FIRST_ROUND + OTHER_SECOND, "conversation_b": FIRST_ROUND + SECOND_ROUND,
         "winner": "model_b", "turn": 2},
        {"prompt": FIRST_ROUND + SECOND_ROUND[:1], "chosen": SECOND_ROUND[1:],
         "rejected": OTHER_SECOND[1:]},
    ),
    "arena-human-preference-55k": (
        FIFTY_FIVE | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"prompt": QUESTION, "chosen": GOOD + SECOND_ROUND,
         "rejected": BAD + [user("And at night?"), assistant("")], "id": 1, "model_a": "m1"},
    ),
    "arena-human-preference-55k, tie": (
        FIFTY_FIVE | {"winner_model_a": "0", "winner_model_b": "0", "winner_tie": "1"},
        {"prompt": QUESTION, "id": 1, "model_a": "m1", "scores": [0, 0], "responses": [
            GOOD + SECOND_ROUND, BAD + [user("And at night?"), assistant("")]]},
    ),
    # ---------------------------------------------------------------- names, ranks and scores
    "stack-exchange-paired": (
        {"qid": 3, "question": Q, "response_j": G, "response_k": B, "metadata": ["https://x"]},
        PAIR | {"qid": 3, "metadata": ["https://x"]},
    ),
    "ms-swift": ({"messages": FIRST_ROUND, "rejected_response": B}, MESSAGES | {"rejected": B}),
    "ms-swift, several": (
        {"messages": [system("s"), *FIRST_ROUND], "rejected_response": [B, "Lead is."]},
        {"prompt": [system("s"), *QUESTION], "responses": [GOOD, B, "Lead is."],
         "scores": [1, 0, 0]},
    ),
    "ms-swift, rejected_messages": (
        {"messages": FIRST_ROUND, "rejected_messages": OTHER_ROUND, "margin": 2},
        MESSAGES | {"margin": 2},
    ),
    "ms-swift, query": ({"query": Q, "response": G, "rejected_response": B}, PAIR),
    "Nectar": (
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "source": ["x"], "answers": [
            {"answer": B, "model": "m1", "rank": 2.0}, {"answer": G, "model": "m2", "rank": 1.0}]},
        {"prompt": QUESTION, "responses": [B, G], "ranks": [2.0, 1.0], "source": ["x"]},
    ),
    "UltraFeedback completions": (
        {"source": "x", "instruction": Q, "completions": [
            {"response": G, "fine-grained_score": 4.5, "overall_score": 7.0},
            {"response": B, "fine-grained_score": 1.5, "overall_score": 10.0}]},
        {"source": "x", "prompt": Q, "responses": [G, B], "scores": [4.5, 1.5]},
    ),
    "UltraFeedback completions, overall": (
        {"instruction": Q, "completions": [
            {"response": G, "overall_score": 7.0},
            {"response": B, "fine-grained_score": 4.5, "overall_score": 3.0}]},
        {"prompt": Q, "responses": [G, B], "scores": [7.0, 3.0]},
    ),
    "PPE best of k": (
        {"prompt": Q, "response_1": B, "response_2": G, "response_3": "Lead is.",
         "scores": [False, True, False], "sampled_conflict_pairs": [[0, 1]]},
        {"prompt": Q, "responses": [B, G, "Lead is."], "scores": [0, 1, 0],
         "sampled_conflict_pairs": [[0, 1]]},
    ),
    "RM-Bench": (
        {"id": "r1", "prompt": Q, "chosen": [G, G + " Yes.", "**" + G + "**"],
         "rejected": [B, B + " Yes.", "**" + B + "**"], "domain": "chat"},
        {"id": "r1", "prompt": Q, "scores": [1, 1, 1, 0, 0, 0], "domain": "chat", "responses": [
            G, G + " Yes.", "**" + G + "**", B, B + " Yes.", "**" + B + "**"]},
    ),
    "RewardBench 1": (
        PAIR | {"id": 1, "subset": "x", "chosen_model": "human", "rejected_model": "m2"},
        PAIR | {"id": 1, "subset": "x", "chosen_model": "human", "rejected_model": "m2"},
    ),
    "RewardBench 2": (
        {"prompt": Q, "chosen": [G], "rejected": [B, "Lead is."], "subset": "Factuality"},
        {"prompt": Q, "responses": [G, B, "Lead is."], "scores": [1, 0, 0], "subset": "Factuality"},
    ),
    # ---------------------------------------------------------------- prompts and notations
    "orca_dpo_pairs": (
        {"system": "Be brief.", "question": Q, "chosen": G, "rejected": B},
        PAIR | {"prompt": [system("Be brief."), *QUESTION]},
    ),
    "alpaca": (
        {"instruction": "Name it.", "input": Q, "chosen": G, "rejected": B},
        PAIR | {"prompt": "Name it.\n" + Q},
    ),
    "Anthropic": (
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {G}",
         "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
        MESSAGES,
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": Q}], "chosen": {"from": "gpt", "value": G},
         "rejected": {"from": "gpt", "value": B}},
        {"prompt": QUESTION, "chosen": GOOD[0], "rejected": BAD[0]},
    ),
    "TRL, implicit prompt": ({"chosen": FIRST_ROUND, "rejected": OTHER_ROUND}, MESSAGES),
    "history": (
        PAIR | {"history": [["Hello.", "Good day."]]},
        PAIR | {"prompt": [user("Hello."), assistant("Good day."), *QUESTION]},
    ),
    "tools": (PAIR | {"tools": '[{"name": "weather"}]'}, PAIR | {"tools": [{"name": "weather"}]}),
    "no pictures": (PAIR | {"images": [], "videos": None, "image": ""}, PAIR),
    "a dialogue to score": (
        {"messages": FIRST_ROUND},
        {"prompt": QUESTION, "response": GOOD},
    ),
}
