"""What stages and passes cost on the devices a panel can choose; measured here, else a roofline."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd

from hspec_lab import cost
from hspec_lab.config import Chain, Config, Drafting, Refine, head_draft, split_model
from hspec_lab.cost import Measured
from hspec_lab.device import known, load
from hspec_lab.roofline import calibrate
from hspec_lab.roofline import stage_costs as roofline_costs
from hspec_lab.stages import StageCosts
from hspec_lab.stages_folder import GROUP, draft_of
from hspec_lab.store import device_name

# tokens stored where nothing else is asked for, on devices where nothing was measured
_CONTEXT = 512


class Costs:
    """Stages of every device, by format and drafter.

    Args:
        stages: measured in rounds, as `store` reads them.
        curves: cost curves measured on the same device, to which its roofline is fitted where
            stages are missing; None: none.
        base: names the models.
        elsewhere: models that stand for the base's on other devices.

    Attributes:
        here: where stages were measured.
        devices: all names, `here` first.
    """

    def __init__(
        self, stages: Measured, curves: Measured | None, base: Config, elsewhere: dict[str, str]
    ):
        self.stages, self.curves, self.base, self.elsewhere = stages, curves, base, elsewhere
        self.here = device_name(stages[0]["conditions"])
        self.devices = [self.here, *known()]

    def of(
        self, device: str, target: str, draft: Drafting | None, context: int | None
    ) -> tuple[StageCosts, list[str]]:
        """Stages of a target format over a drafter, and notes on what stands for what."""
        if device not in self.devices:
            raise ValueError(f"device is one of {', '.join(self.devices)}; got {device!r}")
        where = split_model(self.base.target)[0]
        if device == self.here:
            return self._measured(f"{where}@{target}", draft, context)
        where = self.elsewhere.get("target", where)
        below = None
        if isinstance(draft, Chain | Refine):
            place, format = split_model(draft.model)
            below = f"{self.elsewhere.get('intermediate', place)}@{format}"
        costs = roofline_costs(
            load(device),
            f"{where}@{target}",
            below,
            **_of_head(draft),
            context=context or _CONTEXT,
        )
        return costs, []

    def passes(self, device: str, formats: list[str], context: int | None) -> pd.DataFrame:
        """Cost curves of the target, a table as `store.COSTS`; `attrs` hold origin and note.

        Measured ones where there are any; else those of the stages that predictions use.
        """
        if device == self.here and self.curves is not None:
            return self._recorded()
        parts, said = [], None
        for format in formats:
            try:
                said, _ = self.of(device, format, None, context)
            except ValueError:
                continue
            n = np.flatnonzero(np.isfinite(said.target_us))
            model, scheme = split_model(said.target)
            names = {"device": said.device, "model": model, "scheme": scheme}
            us = said.target_us[n]
            rows = pd.DataFrame({"n": n, "time_us": us, "ratio": us / us[0]})
            parts.append(rows.assign(**names, context=said.context))
        if not parts:
            raise ValueError(f"{device} has no curve of {', '.join(formats)}: run `hspec measure`")
        table = pd.concat(parts, ignore_index=True)
        note = f"{said.device}, {said.context} tokens stored"
        table.attrs = {"origin": said.origin, "note": note}
        return table

    def _recorded(self) -> pd.DataFrame:
        head, table = self.curves
        table = table[table["model"] == split_model(self.base.target)[0]]
        contexts = ", ".join(map(str, table["context"].unique()))
        found = head["conditions"]
        note = f"{device_name(found)}, {contexts} tokens stored, {found['date'][:10]}"
        table.attrs = {"origin": "measured", "note": note}
        return table

    def _measured(
        self, target: str, draft: Drafting | None, context: int | None
    ) -> tuple[StageCosts, list[str]]:
        """Stages as measured here; where they are missing, those of the nearest `top_k`."""
        stages = self.stages[0], self._rounds(target, draft)
        try:
            return cost.stage_costs(stages, target, draft, context), []
        except ValueError as error:
            missing = error
        measured = dict.fromkeys(k for k in self.stages[1]["top_k"].unique().tolist() if k)
        for top_k in measured if head_draft(draft) is not None else ():
            try:
                found = cost.stage_costs(stages, target, with_top_k(draft, top_k), context)
            except ValueError:
                continue
            return found, [f"a draft's time is measured at top-k {top_k}"]
        return self._fitted(target, draft, context, missing)

    def _rounds(self, target: str, draft: Drafting | None) -> pd.DataFrame:
        """The rounds that can say something: looking through all of them takes seconds."""
        found = [
            rows
            for (name, text), rows in self._groups.items()
            if split_model(name) == split_model(target)
            and (draft is None or type(draft_of(text)) is type(draft))
        ]
        return pd.concat(found) if found else self.stages[1]

    @cached_property
    def _groups(self) -> dict[tuple, pd.DataFrame]:
        return dict(list(self.stages[1].groupby(GROUP, sort=False)))

    def _fitted(
        self, target: str, draft: Drafting | None, context: int | None, missing: ValueError
    ) -> tuple[StageCosts, list[str]]:
        """The roofline of this device, fitted to its cost curves, where stages are missing."""
        below = draft.model if isinstance(draft, Chain | Refine) else None
        if self._device is None:
            raise ValueError(
                f"{self.here} has no times of {target}{' over ' + below if below else ''}: press "
                "Measure for this one setting, or `hspec measure --in-rounds` for all of them"
            ) from missing
        device, fitted = self._device
        costs = roofline_costs(
            device,
            target,
            below,
            **_of_head(draft),
            context=context or _CONTEXT,
            calibration=fitted,
        )
        return costs, ["no rounds of these formats were measured here"]

    @cached_property
    def _device(self):
        """The roofline of the device where curves were measured, and its fit; None without."""
        if self.curves is None:
            return None
        head, table = self.curves
        cpu = head["conditions"]["cpu"].split()[-1].lower()
        name = next((name for name in known() if cpu in name), None)
        return None if name is None else (load(name), calibrate(load(name), table))


def with_top_k(draft: Drafting, top_k: int) -> Drafting:
    """The same drafter with another `top_k` of its head."""
    if isinstance(draft, Refine):
        return replace(draft, draft=with_top_k(draft.draft, top_k))
    return replace(draft, top_k=top_k)


def _of_head(draft: Drafting | None) -> dict:
    """What a roofline wants to know of a draft head."""
    tree = head_draft(draft)
    if tree is None:
        return {}
    scheme = split_model(tree.head)[1] if tree.head else None
    return {"top_k": tree.top_k, "head_scheme": scheme}
