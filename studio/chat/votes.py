"""Blind votes between replies, and how often each adapter won. Knows nothing of the engine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from storage import files
from storage.conversations import Votes as Records
from storage.records import VoteRecord
from studio.chat.stamp import Stamp
from studio.errors import InvalidInput


@dataclass(frozen=True)
class Rate:
    """How often an adapter was liked best among others."""

    wins: int
    votes: int


class Votes:
    """The votes of the studio.

    Args:
        records: the table.
    """

    def __init__(self, records: Records) -> None:
        self.records = records

    def vote(self, prompt: str, compared: Sequence[Stamp], winner: int) -> VoteRecord:
        """Store which of several replies is the best.

        Raises:
            InvalidInput: there is no such reply, or only one.
        """
        if len(compared) < 2 or not 0 <= winner < len(compared):
            raise InvalidInput("There is no such reply to vote for; compare again.")
        who = [{"voice": stamp.adapter, "adapter_id": stamp.adapter_id, "sha256": stamp.adapter_sha256} for stamp in compared]
        return self.records.add(VoteRecord(files.new_id(), prompt, who, winner, time.time()))

    def rates(self) -> dict[str, Rate]:
        """Wins and votes of each adapter by its id. A vote between replies of one voice alone says nothing about it."""
        wins, votes = dict[str, int](), dict[str, int]()
        for vote in self.records.all():
            if len({voice["sha256"] for voice in vote.compared}) < 2:
                continue
            for adapter_id in {voice["adapter_id"] for voice in vote.compared} - {""}:
                votes[adapter_id] = votes.get(adapter_id, 0) + 1
                wins[adapter_id] = wins.get(adapter_id, 0) + (vote.compared[vote.winner]["adapter_id"] == adapter_id)
        return {adapter_id: Rate(wins[adapter_id], count) for adapter_id, count in votes.items()}
