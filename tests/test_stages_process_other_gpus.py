"""GPUs that cannot be used are named, and integrated graphics are not."""

import platform
from pathlib import Path

import pytest

from flows.cli.doctor_command import _device
from stages.process.other_gpus import AMD, INTEGRATED, INTEL, NVIDIA, unused_gpu


def card(folder: Path, address: str, vendor: str, video_bytes: int = 0) -> Path:
    """Write a card as the kernel lists it; returns the folder of all cards."""
    device, cards = folder / "devices" / address, folder / "drm"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    if video_bytes:
        (device / "mem_info_vram_total").write_text(f"{video_bytes}\n")
    number = len(list(cards.glob("card?"))) if cards.exists() else 0
    (cards / f"card{number}").mkdir(parents=True)
    (cards / f"card{number}" / "device").symlink_to(device)
    (cards / f"card{number}-HDMI-A-1").mkdir()  # a connector
    return cards


@pytest.mark.parametrize(
    ("address", "vendor", "video_bytes", "named"),
    [
        ("0000:03:00.0", NVIDIA, 0, "NVIDIA"),
        ("0000:03:00.0", AMD, 16 << 30, "by AMD"),
        ("0000:06:00.0", AMD, 512 << 20, ""),
        ("0000:03:00.0", INTEL, 0, "by Intel"),
        (INTEGRATED, INTEL, 0, ""),
        ("0000:01:00.0", "0x1234", 0, ""),
    ],
)
def test_a_gpu_that_cannot_be_used_is_named(
    address: str, vendor: str, video_bytes: int, named: str, tmp_path: Path
) -> None:
    found = unused_gpu(card(tmp_path, address, vendor, video_bytes))
    assert named in found and bool(found) == bool(named)


def test_one_beside_integrated_graphics_is_found(tmp_path: Path) -> None:
    card(tmp_path, INTEGRATED, INTEL)
    assert "AMD" in unused_gpu(card(tmp_path, "0000:03:00.0", AMD, 8 << 30))
    assert unused_gpu(tmp_path / "none") == ""


def test_a_mac_and_a_machine_without_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "Apple" in unused_gpu(tmp_path)


def test_doctor_names_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(unused_gpu, "__defaults__", (card(tmp_path, "0000:03:00.0", AMD, 8 << 30),))
    (line,) = _device("cpu")
    assert "there is a GPU by AMD, which is not supported" in line
