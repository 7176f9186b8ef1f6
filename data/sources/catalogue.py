"""Public sets that `fetch` can download: where they lie, under which licence, how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# pinned to a commit, so that the address says which bytes
_AZURE = (
    "https://raw.githubusercontent.com/Azure/AzurePublicDataset/"
    "790921015d50dd6aae7f7e47f39ba0e235ad6b08/data"
)


@dataclass(frozen=True, slots=True)
class PublicSet:
    """One downloadable file: `path` in the Hugging Face dataset `repository`, or a URL without one.

    `sha256` None: pinned by its address. `size_bytes` None: unknown.
    """

    name: str
    path: str
    license: str
    kind: Literal["prompts", "trace"]
    reader: str
    about: str
    repository: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def file_name(self) -> str:
        """The name the file is stored under: the set's name with the path's ending."""
        return self.name + "." + self.path.rsplit(".", 1)[-1]


CATALOGUE = {
    entry.name: entry
    for entry in (
        PublicSet(
            name="sharegpt_vicuna",
            repository="anon8231489123/ShareGPT_Vicuna_unfiltered",
            path="ShareGPT_V3_unfiltered_cleaned_split.json",
            license="Apache-2.0 (as the page states; the conversations were shared by users)",
            kind="prompts",
            reader="sharegpt",
            about="chat, the paper's second set; many turns",
            sha256="35f0e213ce091ed9b9af2a1f0755e9d39f9ccec34ab281cd4ca60d70f6479ba4",
            size_bytes=672_837_942,
        ),
        PublicSet(
            name="python_code_23k",
            repository="ajibawa-2023/Python-Code-23k-ShareGPT",
            path="Python-Code-23k-ShareGPT.json",
            license="CC-BY-NC-ND-4.0 (non-commercial)",
            kind="prompts",
            reader="sharegpt_code",
            about="code, the paper's first set",
            sha256="b21c0569722dd18952728ac47a8168de3920edab0eb00dd2276779b1b0614397",
            size_bytes=53_758_957,
        ),
        PublicSet(
            name="dolly_15k",
            repository="databricks/databricks-dolly-15k",
            path="databricks-dolly-15k.jsonl",
            license="CC-BY-SA-3.0",
            kind="prompts",
            reader="jsonl",
            about="instructions with answers written by people",
            sha256="2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
            size_bytes=13_085_339,
        ),
        PublicSet(
            name="azure2023_code",
            path=f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
            license="CC-BY-4.0",
            kind="trace",
            reader="azure",
            about="arrivals and lengths of a code service, bursty",
        ),
        PublicSet(
            name="azure2023_conv",
            path=f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
            license="CC-BY-4.0",
            kind="trace",
            reader="azure",
            about="arrivals and lengths of a chat service",
        ),
    )
}
