# SPDX-License-Identifier: Apache-2.0
"""Step 2: keep the responses that follow the template and answer correctly (arXiv 2511.11113, §3)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_tools.records.left_out import Dropped
from data_tools.steps.run import OnRecord, Outcome, StepReport, run_step
from verl_p2r.accuracy import answer_accuracy
from verl_p2r.data.errors import RowError
from verl_p2r.data.record import Record
from verl_p2r.data.truths import AGREEMENT
from verl_p2r.template import ParsedResponse, parse_response


@dataclass(frozen=True)
class VerifySettings:
    """What a response must be.

    Args:
        min_accuracy: the least accuracy of its answer, in [0, 1]; 0.6 in the paper.
        strict: compare answers exactly as Video-R1 does.
    """

    min_accuracy: float = AGREEMENT
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_accuracy <= 1:
            raise ValueError(f"min_accuracy is {self.min_accuracy}: give a share between 0 and 1")


def verified(record: Record, settings: VerifySettings) -> Outcome:
    """Verify the response of a record.

    Args:
        record: a record with a response, in `output` or in its parts.
        settings: what the response must be.

    Returns:
        The record with `observation`, `process` (its thinking) and `reward` (the accuracy of its answer) read from the
        response; and why it does not go on, if it does not.

    >>> record = Record("1", "How many?", "numerical", "video", "a.mp4", "3", output="<answer>3</answer>")
    >>> verified(record, VerifySettings())[1].reason
    'not in the template'
    """
    text = record.output if record.output is not None else record.response
    if text is None:
        return record, RowError("output", "no response", "field output is not set: generate responses first")
    parsed = parse_response(text)
    accuracy = answer_accuracy(
        record.problem_type,
        parsed.answer or "",
        record.solution,
        strict=settings.strict,
        options=record.options,
    )
    record = replace(
        record,
        output=text.strip(),
        observation=parsed.observation,
        process=parsed.think,
        reward=round(accuracy, 6),
        select=None,
    )
    return record, _fault(parsed, accuracy, settings.min_accuracy)


def _fault(parsed: ParsedResponse, accuracy: float, least: float) -> Dropped | None:
    """Return why a response is dropped; None when it is kept."""
    well_formed = {"observation": parsed.perception_well_formed, "think and answer": parsed.reasoning_well_formed}
    wrong = [part for part, is_fine in well_formed.items() if not is_fine]
    if wrong:
        what = f"not in the template: its {' and its '.join(wrong)}"
        return Dropped("output", "not in the template", what)
    if accuracy < least:
        return Dropped("output", f"accuracy below {least:g}", f"its answer has an accuracy of {accuracy:.3f}")
    return None


def verify(
    files: Sequence[Path],
    folder: Path,
    settings: VerifySettings | None = None,
    *,
    max_reject_share: float = 0.01,
    on_record: OnRecord = lambda kept: None,
) -> StepReport:
    """Keep the records whose response follows the template and answers correctly.

    Args:
        files: files of records with responses, see `records.files.files_of`.
        folder: output folder; an earlier output is replaced.
        settings: what a response must be.
        max_reject_share: the largest share of records, in [0, 1], that may be unreadable or without a response.
        on_record: called once a record.

    Raises:
        ValueError: the folder cannot be used.
    """
    chosen = settings or VerifySettings()

    def transform(records: Iterable[Record]) -> Iterator[Outcome]:
        for record in records:
            outcome = verified(record, chosen)
            on_record(outcome[1] is None)
            yield outcome

    return run_step("verify", files, folder, transform, settings=asdict(chosen), max_reject_share=max_reject_share)
