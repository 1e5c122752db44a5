"""GQA's report, where the recorded data are too small to tell rules apart."""

from minigpt4.evaluation.metrics.gqa import report


def question(group: str, answer: str = "a", balanced: bool = True, entailed: tuple[str, ...] = ()) -> dict:
    types = {"structural": "query", "semantic": "obj", "detailed": "x"}
    entry = {"isBalanced": balanced, "types": types, "groups": {"global": group}, "semantic": [], "question": "Why?"}
    return {**entry, "answer": answer, "entailed": list(entailed)}


def test_distribution_is_weighted_by_the_size_of_groups():
    questions = {f"w{i}": question("wrong") for i in range(300)} | {f"r{i}": question("right") for i in range(100)}
    found = report(questions, {key: "b" if key.startswith("w") else "a" for key in questions})
    assert found["distribution"] == 2.25  # 300 of the one, 0 of the other, by 300 and 100, a hundredth
    assert found["accuracy"] == 25 and "validity" not in found and "consistency" not in found and "binary" not in found


def test_consistency_is_over_what_right_answers_entail():
    questions = {
        "1": question("g", entailed=("1", "2", "3")),
        "2": question("g", balanced=False, entailed=("1",)),
        "3": question("g", balanced=False),
        "4": question("g", entailed=("9",)),  # not in this file
    }
    found = report(questions, {"1": "a", "2": "b", "3": "a", "4": "a"})
    assert found["consistency"] == 50 and found["accuracy"] == 100
