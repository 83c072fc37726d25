"""Energy and CO2 of a tracked search, measured by codecarbon where the user has it.

What it must satisfy: no network is asked, no file is written, and a meter that fails costs its
figures only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfer_pruner.savings import Savings

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker


class EnergyMeter:
    """Measure this process and those that it started, such as Ray's workers on this machine.

    Parameters
    ----------
    country : str
        Three-letter ISO code: how much CO2 a kWh stands for.

    Raises
    ------
    ImportError
        If codecarbon is not installed.
    ValueError
        If codecarbon does not know the country.
    """

    def __init__(self, country: str) -> None:
        try:
            from codecarbon.external.logger import set_logger_level
            from codecarbon.input import DataSource
        except ImportError as error:
            raise ImportError(
                "energy= needs codecarbon: pip install 'transfer-pruner[energy]'."
            ) from error
        known = DataSource().get_global_energy_mix_data()  # type: ignore[no-untyped-call]
        if not isinstance(country, str) or country not in known:
            raise ValueError(
                f"energy must be the three-letter ISO code of a country, such as 'DEU', but got "
                f"{country!r}."
            )
        # Before the meter is made: making it warns of what nobody can change.
        set_logger_level("error")
        self._country = country
        self._meter: OfflineEmissionsTracker | None = None

    def start(self) -> None:
        """Begin to measure; about a second the first time."""
        from codecarbon import OfflineEmissionsTracker

        self._meter = OfflineEmissionsTracker(
            country_iso_code=self._country,
            tracking_mode="process",
            save_to_file=False,
            save_to_api=False,
            log_level="error",
            allow_multiple_runs=True,
        )
        self._meter.start()

    def stop(self, savings: Savings) -> dict[str, float]:
        """Name what was used since the start, and what the eliminated trials would have used.

        The latter is estimated: the share by which they would have made the search longer, of what
        the search used. Single-task training and attribution came before, and are no part of it.
        """
        if self._meter is None:
            return {}
        self._meter.stop()
        used = self._meter.final_emissions_data
        metrics = {"energy/kwh": used.energy_consumed, "energy/co2_kg": used.emissions}
        searched = savings.training_seconds + savings.deciding_seconds
        exhaustive = savings.estimated_exhaustive_seconds - savings.single_task_seconds
        if searched > 0 and exhaustive > 0:
            ratio = (exhaustive - searched) / searched
            metrics |= {
                "energy/estimated_fraction_saved": 1 - searched / exhaustive,
                "energy/estimated_kwh_saved": used.energy_consumed * ratio,
                "energy/estimated_co2_kg_saved": used.emissions * ratio,
            }
        return metrics
