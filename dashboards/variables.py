"""The variables at the top of the dashboards: what can be chosen, and where the choices come from."""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import DataSourceRef

from dashboards.promql import APPLICATION_LABEL, HOST_LABEL, SCRAPE_LABELS, QueryError, matcher
from jobmetrics import families
from jobmetrics.families import HISTOGRAM, Family

DATASOURCE_TYPE = "prometheus"
DATASOURCE = DataSourceRef(type_val=DATASOURCE_TYPE, uid="${datasource}")

EVERYTHING = ".*"
"""The value for "all": it matches series without the label too, and its length does not depend on the choices."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice of a label's values, or all, which narrows every panel of its dashboard.

    families: metrics that have all values of the label. narrowed_by: earlier variables that restrict the choices.
    """

    name: str
    label: str
    title: str
    description: str
    families: tuple[Family, ...]
    narrowed_by: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        for family in self.families:
            if self.label not in (*SCRAPE_LABELS, *family.labels) or family.type == HISTOGRAM:
                raise QueryError(f"{family.name} has no label {self.label!r} to choose from")

    @property
    def selector(self) -> str:
        """The series with the chosen label values."""
        names = "|".join(family.name for family in self.families)
        matchers = [matcher(other) for other in self.narrowed_by if self._shares(other)]
        if len(self.families) == 1:
            return names + (f"{{{','.join(matchers)}}}" if matchers else "")
        return "{" + ",".join([f'__name__=~"{names}"', *matchers]) + "}"

    @property
    def builder(self) -> build.QueryVariable:
        """Build Grafana's model of the variable."""
        query = f"label_values({self.selector}, {self.label})"
        return (
            build.QueryVariable(self.name)
            .label(self.title)
            .description(self.description)
            .datasource(DATASOURCE)
            .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
            .definition(query)
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(EVERYTHING)
            .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
        )

    def _shares(self, other: Variable) -> bool:
        return all(other.label in (*SCRAPE_LABELS, *family.labels) for family in self.families)


APPLICATION = Variable(
    "application",
    APPLICATION_LABEL,
    "Application",
    "Prometheus' scrape job: all exporters of one application.",
    (families.BUILD_INFO,),
)
HOST = Variable(
    "host",
    HOST_LABEL,
    "Host",
    "The exporter, which is the workers' host. Figures read from a broker are the same for every exporter.",
    (families.BUILD_INFO,),
    (APPLICATION,),
)
SYSTEM = Variable(
    "system",
    "system",
    "System",
    "celery, rq, or python for plain functions.",
    (families.JOBS, families.JOBS_WORKERS, families.JOBS_QUEUE_DEPTH),
    (APPLICATION,),
)
BROKER = Variable(
    "broker",
    "broker",
    "Broker",
    "By its name in the exporter's options.",
    (families.COLLECTOR_UP,),
    (APPLICATION,),
)
QUEUE = Variable(
    "queue",
    "queue_name",
    "Queue",
    "Queues that jobs ran from, were sent to or wait in.",
    (families.JOBS, families.JOBS_PUBLISHED, families.JOBS_QUEUE_DEPTH),
    (APPLICATION, SYSTEM),
)
JOB_TYPE = Variable(
    "job_type",
    "job_type",
    "Job type",
    "The registered task name or function path.",
    (families.JOBS, families.JOBS_PUBLISHED, families.JOBS_ACTIVE, families.JOBS_WITHDRAWN),
    (APPLICATION, SYSTEM, QUEUE),
)


def datasource() -> build.DatasourceVariable:
    """The choice of a Prometheus."""
    return build.DatasourceVariable("datasource").label("Data source").type(DATASOURCE_TYPE)


def filters() -> build.AdHocVariable:
    """More matchers for every query: for constant labels that exporters or Prometheus add."""
    return (
        build.AdHocVariable("filters")
        .label("Filters")
        .description("Any other label, such as one for production or staging.")
        .datasource(DATASOURCE)
    )
