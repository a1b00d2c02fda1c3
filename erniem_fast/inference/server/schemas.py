"""Bodies of requests. Unknown members are ignored, as the peers do; types are never converted."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag
from typing_extensions import TypeAliasType

T = TypeVar("T")
Listed = TypeAliasType("Listed", Annotated[list[T], FailFast()], type_params=(T,))
"""A list whose first wrong element ends the check: only that is reported."""
Ids = Listed[Annotated[int, Field(ge=0, lt=2**31)]]


def _form(value: Any) -> str | None:
    """The form of an input: a text, a text's token ids, or several."""
    if isinstance(value, list):
        return "ids" if value and isinstance(value[0], int) else "batch"
    return "text" if isinstance(value, str) else None


def _form_of_one(value: Any) -> str | None:
    return "ids" if isinstance(value, list) else "text" if isinstance(value, str) else None


def _form_of_pairs(value: Any) -> str | None:
    if isinstance(value, list):
        return "pair" if value and isinstance(value[0], str) else "pairs"
    return "text" if isinstance(value, str) else None


def _by(form: Callable[[Any], str | None], expected: str) -> Discriminator:
    return Discriminator(form, "form", f"expected {expected}")


One = Annotated[
    Annotated[str, Tag("text")] | Annotated[Ids, Tag("ids")], _by(_form_of_one, "a string or a list of token ids")
]
"""A text, or its token ids."""
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[Ids, Tag("ids")] | Annotated[Listed[One], Tag("batch")],
    _by(_form, "a string, a list of token ids, or a list of these"),
]
"""A text, its token ids, or several of either."""
TextOrPair = Annotated[list[str], Field(min_length=1, max_length=2)]
PredictInput = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextOrPair, Tag("pair")] | Annotated[Listed[TextOrPair], Tag("pairs")],
    _by(_form_of_pairs, "a string, a pair of strings, or a list of lists of one or two strings"),
]
"""A text, a pair of texts, or several of either, each in a list: [["text"], ["text", "pair"]]."""
Texts = Listed[str]
Direction = Literal["Left", "Right", "left", "right"]
Dimensions = Annotated[int, Field(ge=1)]


class Body(BaseModel):
    """A body whose values must have the types named."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Truncation(Body):
    """What to do with texts of more tokens than the model takes."""

    truncate: Annotated[bool | None, Field(description="Cut them; null: as the server was started. false: 413.")] = None
    truncation_direction: Annotated[Direction, Field(description="The end at which tokens go.")] = "Right"


class EmbedAllRequest(Truncation):
    """Body of `/embed_all`."""

    inputs: Input
    prompt_name: Annotated[
        str | None, Field(description="A prompt in the checkpoint's settings, put before each text.")
    ] = None


class EmbedRequest(EmbedAllRequest):
    """Body of `/embed`."""

    normalize: Annotated[bool, Field(description="Scale vectors to length 1.")] = True
    dimensions: Annotated[Dimensions | None, Field(description="Keep the first so many components.")] = None


class PredictRequest(Truncation):
    """Body of `/predict`."""

    inputs: PredictInput
    raw_scores: Annotated[bool, Field(description="Logits instead of probabilities.")] = False


class RerankRequest(Truncation):
    """Body of `/rerank`."""

    query: str
    texts: Texts
    raw_scores: Annotated[bool, Field(description="Logits instead of probabilities.")] = False
    return_text: bool = False


class SimilarityInput(Body):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: Texts


class SimilarityParameters(Truncation):
    """How the sentences are embedded."""

    prompt_name: str | None = None


class SimilarityRequest(Body):
    """Body of `/similarity`."""

    inputs: SimilarityInput
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Body):
    """Body of `/tokenize`."""

    inputs: str | Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(Body):
    """Body of `/decode`."""

    ids: Annotated[
        Annotated[Ids, Tag("ids")] | Annotated[Listed[Ids], Tag("batch")],
        _by(_form, "a list of token ids, or a list of such lists"),
    ]
    skip_special_tokens: bool = True


class EmbeddingsRequest(Body):
    """Body of `/v1/embeddings`."""

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    user: str | None = None
