"""The SAE of one site in a form in which latents can be moved to another SAE.

With h = (x - b_dec) W_enc, latent j is relu(slope_j h_j + b_mag_j) where h_j + b_enc_j
is above threshold_j, and 0 elsewhere; x' = f W_dec + b_dec. Plain, JumpReLU, gated and
BatchTopK SAEs (the last with the threshold that they have outside training) all have
this form: whether a latent fires does not depend on the others. Rescaling is folded in,
so x and x' are in original units (docs/methods.md, section 7).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.records import RunRecord
from trainer.errors import RunError
from trainer.exports.neutral_form import PlainSae, layer_of, with_unit_decoder
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.build import kind_of

LATENTS_AT_ONCE = 8192
"""Latents of a block of rows that are in memory at once."""
Part = slice | Tensor
ALL = slice(None)


class Dictionary(NamedTuple):
    """Latents that fire independently of each other, in original units.

    Attributes:
        W_enc: [d, m].
        b_enc: [m].
        threshold: [m]; what h + b_enc has to exceed.
        slope: [m], above 0.
        b_mag: [m]; b_enc where magnitude and gate are the same.
        W_dec: [m, d].
        b_dec: [d].
    """

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    slope: Tensor
    b_mag: Tensor
    W_dec: Tensor
    b_dec: Tensor

    @property
    def d(self) -> int:
        """Width of a row."""
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents, m."""
        return self.W_dec.shape[0]

    def parts(self) -> Iterator[slice]:
        """Yield the latents in parts of `LATENTS_AT_ONCE`."""
        for start in range(0, self.n_latents, LATENTS_AT_ONCE):
            yield slice(start, start + LATENTS_AT_ONCE)

    def encode(self, x: Tensor, part: Part = ALL) -> Tensor:
        """Return latents [n, p] of rows [n, d]; `part`: which latents, all of them."""
        products = (x - self.b_dec) @ self.W_enc[:, part]
        magnitudes = products * self.slope[part] + self.b_mag[part]
        fires = products + self.b_enc[part] > self.threshold[part]
        return torch.where(fires, magnitudes.relu(), 0.0)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction [n, d] of rows [n, d], and their L0, int64 [n]."""
        again = self.b_dec.expand_as(x).clone()
        l0 = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for part in self.parts():
            latents = self.encode(x, part)
            again += latents @ self.W_dec[part]
            l0 += (latents > 0).sum(dim=1)
        return again, l0

    def moved_to(self, b_dec: Tensor) -> Dictionary:
        """Return the same latents beside another decoder bias [d].

        They fire on the same rows with the same values: b_enc' = b_enc + W_enc (b_dec'
        - b_dec), and so for b_mag, times the slope (docs/methods.md, section 3).
        """
        shift = (b_dec.double() - self.b_dec.double()) @ self.W_enc.double()
        dtype = self.b_enc.dtype
        return self._replace(
            b_enc=(self.b_enc.double() + shift).to(dtype),
            b_mag=(self.b_mag.double() + self.slope.double() * shift).to(dtype),
            b_dec=b_dec,
        )

    def taken(self, latents: Tensor) -> Dictionary:
        """Return the dictionary of some latents, int64 [p]."""
        return Dictionary(
            self.W_enc[:, latents],
            self.b_enc[latents],
            self.threshold[latents],
            self.slope[latents],
            self.b_mag[latents],
            self.W_dec[latents],
            self.b_dec,
        )

    def joined(self, other: Dictionary) -> Dictionary:
        """Return these latents and, after them, those of another dictionary.

        The other's are moved to this decoder bias, which stays.
        """
        moved = other.moved_to(self.b_dec)
        return Dictionary(
            torch.cat([self.W_enc, moved.W_enc], dim=1),
            torch.cat([self.b_enc, moved.b_enc]),
            torch.cat([self.threshold, moved.threshold]),
            torch.cat([self.slope, moved.slope]),
            torch.cat([self.b_mag, moved.b_mag]),
            torch.cat([self.W_dec, moved.W_dec]),
            self.b_dec,
        )

    def to(self, kind: torch.device | str | torch.dtype) -> Dictionary:
        """Return it on a device, or in a dtype."""
        return Dictionary(*(tensor.to(kind) for tensor in self))

    def with_unit_decoder(self) -> Dictionary:
        """Return the same function with decoder rows of norm 1; those of 0 stay."""
        return of_plain(with_unit_decoder(self.plain()))

    def plain(self) -> PlainSae:
        """Return it as the simplest architecture that computes the same, in float64."""
        exact = self.to(torch.float64)
        tensors = {"W_enc": exact.W_enc, "W_dec": exact.W_dec, "b_dec": exact.b_dec}
        is_plain = torch.equal(exact.b_mag, exact.b_enc)
        if not is_plain or not bool((exact.slope == 1).all()):
            tensors["b_gate"] = exact.b_enc - exact.threshold
            tensors["b_mag"] = exact.b_mag
            tensors["r_mag"] = exact.slope.log()
            return PlainSae("gated", tensors)
        tensors["b_enc"] = exact.b_enc
        if not bool(exact.threshold.any()):
            return PlainSae("standard", tensors)
        tensors["threshold"] = exact.threshold
        return PlainSae("jumprelu", tensors)


def of_plain(plain: PlainSae) -> Dictionary:
    """Return the dictionary of an SAE in the form between ours and others'."""
    tensors = plain.tensors
    b_enc = tensors["b_gate" if plain.architecture == "gated" else "b_enc"]
    threshold = tensors.get("threshold", torch.zeros_like(b_enc))
    return Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=b_enc,
        # The ReLU comes after it, so a threshold below 0 does what 0 does.
        threshold=threshold.clamp_min(0),
        slope=tensors.get("r_mag", torch.zeros_like(b_enc)).exp(),
        b_mag=tensors.get("b_mag", b_enc),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
    )


def dictionary_of(sae: TrainedSae, site: str) -> Dictionary:
    """Return the dictionary of a trained SAE at one of its sites, float32.

    Raises:
        RunError: Its latents are not independent of each other, or it is not an SAE of
            one site.
    """
    kind = kind_of(sae.spec)
    check_one_site(sae, site)
    architecture = kind.counterpart(sae.spec)
    why = None
    if architecture is None:
        why = kind.no_saelens_because
    elif kind.sparse and not kind.selects_over_batch:
        why = "which latents fire on a row depends on all others"
    if why is not None:
        raise RunError(
            f"{sae.url}: latents of a {kind.name} SAE cannot be moved to another SAE"
            f" ({why}); wanted relu_l1, jumprelu, gated, batch_topk or matryoshka"
        )
    return of_plain(layer_of(sae, sae.sites.index(site))).to(torch.float32)


def check_one_site(sae: TrainedSae, site: str) -> None:
    """Check that a run is an SAE for each site, and has this one.

    Raises:
        RunError: It is a transcoder or a crosscoder, or has no such site.
    """
    check_kind(sae.url, sae.record)
    if site not in sae.sites:
        raise RunError(
            f"{sae.url}: it has no site {site}; its sites are {', '.join(sae.sites)}"
        )


def check_kind(run: str, record: RunRecord) -> None:
    """Check that a run is an SAE for each of its sites.

    Raises:
        RunError: It is a transcoder or a crosscoder.
    """
    kind = kind_of(record.sae)
    if kind.of_all_sites or kind.to_other_site:
        raise RunError(
            f"{run}: a {kind.name} is no SAE of one site, and only such SAEs are"
            " compared and stitched"
        )
