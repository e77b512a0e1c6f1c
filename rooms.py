"""Simulated rooms: speakers and a noise, recorded by an array of microphones.

    RoomConfig         what rooms are drawn from
    draw_room          size, reverberation time and places of room number n
    simulate_room      its impulse responses, by the image method (pyroomacoustics)
    RoomMixtures       batches of mixtures in such rooms, as data.MixedAudio gives them
    open_rooms         RoomMixtures of a folder with speech and noise

    python rooms.py DIR --num-mics 4 --num-speakers 2 --out runs/rooms     a fixed test set
"""

import argparse
import dataclasses
import concurrent.futures
import math
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
from data import SAMPLE_RATE, MixedAudio, cached, random_start, save_audio


@dataclass(frozen=True)
class RoomConfig:
    """What simulated rooms are drawn from, uniformly in each range. Metres and seconds."""
    num_mics: int = 4  # evenly on a horizontal circle, the first at a random angle
    num_speakers: int = 2
    radius: float = 0.05             # of the circle
    size: tuple = ((3.0, 3.0, 3.0), (8.0, 8.0, 4.0))
    rt60: tuple = (0.2, 0.6)  # reverberation time, to which Sabine's formula chooses the walls
    off_centre: float = 0.35  # of the circle from the middle of the room, at most, along each side
    mic_height: tuple = (1.0, 1.5)
    height: tuple = (1.0, 1.8)       # of the speakers and of the noise
    from_wall: float = 0.5           # at least, of the speakers and of the noise
    from_array: tuple = (0.5, 1.0)   # at least: of a speaker, of the noise


def draw_room(number, config=RoomConfig()):
    """Room `number` in metres and seconds: size (3,), RT60, microphones (3, M), list of sources
    (3,).

    Sources: the speakers, then the noise. Deterministic.
    """
    rng = np.random.default_rng(number)
    size, rt60 = rng.uniform(*config.size), rng.uniform(*config.rt60)
    centre = np.append(size[:2] / 2 + rng.uniform(-config.off_centre, config.off_centre, 2),
                       rng.uniform(*config.mic_height))
    angle = 2 * np.pi * (rng.random() + np.arange(config.num_mics) / config.num_mics)
    # (3, M)
    array = centre[:, None] + config.radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle])
    lowest = [config.from_wall, config.from_wall, config.height[0]]
    highest = [*(size[:2] - config.from_wall), config.height[1]]
    places = []
    while len(places) <= config.num_speakers:
        place = rng.uniform(lowest, highest)
        if np.linalg.norm(place - centre) >= config.from_array[len(places) == config.num_speakers]:
            places.append(place)
    return size, rt60, array, places


def simulate_room(number, config=RoomConfig()):
    """Impulse responses of room `number`, float16 (speakers + 1, mics + 1, n) at 16 kHz.

    Sources: the speakers, then the noise, where draw_room puts them. Responses: that to each
    microphone, then the direct path alone to the reference microphone, aligned with the others.
    Deterministic. Raises ValueError for a reverberation time that no walls can give.
    """
    import pyroomacoustics as pra
    from scipy.signal import butter, lfilter
    pra.constants.set("num_threads", 1)                  # more add up in another order
    pra.constants.set("rir_hpf_enable", False)  # has no phase: sounds before the direct path
    size, rt60, array, places = draw_room(number, config)
    absorption, reflections = pra.inverse_sabine(rt60, size)
    n = int(config.rt60[1] * SAMPLE_RATE)

    def responses_to(array, reflections):
        """List over microphones and sources of (n,)."""
        room = pra.ShoeBox(size, fs=SAMPLE_RATE, materials=pra.Material(absorption),
                           max_order=reflections)
        room.add_microphone_array(array)
        for place in places:
            room.add_source(place)
        room.compute_rir()
        return [[np.pad(response[:n], (0, max(0, n - len(response)))) for response in row]
                for row in room.rir]

    responses = np.swapaxes(
        responses_to(array, reflections) + responses_to(array[:, :1], 0), 0, 1)
    # All reflections of the image method are positive: they add up to a rumble that no room has.
    return lfilter(*butter(2, 50, "highpass", fs=SAMPLE_RATE), responses).astype(np.float16)


def simulated_rooms(numbers, config, cache):
    """Responses (rooms, speakers + 1, mics + 1, n) of these rooms, kept in the folder `cache`."""
    def one(number):
        path = Path(cache) / f"{zlib.crc32(repr(config).encode()):08x}-{number}.npz"
        return cached(path, lambda: simulate_room(number, config))

    # In random order, so that several processes divide the work.
    order = np.random.default_rng().permutation(len(numbers))
    rooms = [None] * len(numbers)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda place: (place, one(numbers[place])), order)
        for place, responses in tqdm(jobs, "simulating rooms", len(numbers), unit="room",
                                     leave=False):
            rooms[place] = responses
    return torch.from_numpy(np.stack(rooms))


def convolve(wave, response):
    """(..., n - 1 + L) * (..., n) -> (..., L): the samples with the whole response."""
    size = 2 ** math.ceil(math.log2(wave.shape[-1]))  # what wraps around lands in the first n - 1
    out = torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(response, size), size)
    return out[..., response.shape[-1] - 1:wave.shape[-1]]


class RoomMixtures(MixedAudio):
    """Speakers and a noise in simulated rooms: clean (B, S, L), mixture (B, M, L), or both (B, L).

    Clean: the direct path of each speaker to the reference microphone, aligned. The speakers
    are recordings of different folders, where there are as many. The noise is a recording played at
    one point, 1 m from the array or more, where most of it arrives from all sides. Ratios hold at
    the reference microphone, reverberation included: each further speaker is `sir` dB (drawn
    from that range) below the first, the noise one of `snrs` below all speakers together.

    rooms: how many; first_room: the number of the first, see simulate_room. cache: folder of their
    responses.
    """

    def __init__(self, speech_dir, noise_dir, config=RoomConfig(), rooms=200, first_room=0,
                 cache="rooms",
                 sir=(-5.0, 5.0), **options):
        super().__init__(speech_dir, noise_dir, **options)
        speech, noise = self.sources
        self.sources = (speech,) * config.num_speakers + (noise,)
        self.loops = (False,) * config.num_speakers + (True,)
        self.must_be_active, self.sir = range(config.num_speakers + 1), sir
        self.folders = np.unique([str(Path(path).parent) for path in speech.paths],
                                 return_inverse=True)[1]
        responses = simulated_rooms(range(first_room, first_room + rooms), config, cache)
        self.responses, self.lead = responses.to(self.device), responses.shape[-1] - 1

    def draw(self, index, rng, length):
        """(files, starts, (room, SNR, level of each speaker in dB))."""
        chosen = [index]
        while len(chosen) < len(self.sources) - 1:
            elsewhere = self.files[~np.isin(self.folders[self.files], self.folders[chosen])]
            chosen.append(rng.choice(elsewhere if len(elsewhere) else self.files))
        starts = [random_start(self.sources[0].lengths[i], length, rng) - self.lead for i in chosen]
        noise, start = self.draw_noise(rng, length)
        room, snr = rng.integers(len(self.responses)), rng.choice(self.snrs)
        levels = 0, *-rng.uniform(*self.sir, len(chosen) - 1)
        return (*chosen, noise), (*starts, start), tuple(map(float, (room, snr, *levels)))

    def combine(self, *sources_and_choices):
        """Crops (B, lead + L) and choices (B, 2 + S) of `draw` -> (clean, mixture)."""
        *sources, choices = sources_and_choices
        room, snr_db, levels = choices[:, 0].long(), choices[:, 1], choices[:, 2:]
        # (B, S + 1, M + 1, L)
        received = convolve(torch.stack(sources, 1)[:, :, None], self.responses[room].float())
        power = received[:, :, :1].square().mean(-1, keepdim=True)
        received = received / power.clamp(min=1e-10).sqrt()
        speakers = received[:, :-1] * 10 ** (levels[:, :, None, None] / 20)
        clean, speech = speakers[:, :, -1], speakers[:, :, :-1].sum(1)       # (B, S, L), (B, M, L)
        rms = speech[:, :1].square().mean(-1, keepdim=True).sqrt()
        mixture = speech + rms * 10 ** (-snr_db[:, None, None] / 20) * received[:, -1, :-1]
        if clean.shape[1] == mixture.shape[1] == 1:
            return clean[:, 0], mixture[:, 0]
        return clean, mixture

    def utterance(self, number):
        """(name, clean, mixture) of a whole recording; deterministic, peak 0.9."""
        name, clean, mixture = super().utterance(number)
        scale = 0.9 / mixture.abs().max()
        return name, scale * clean, scale * mixture


def open_rooms(root, split, config=RoomConfig(), rooms=200, cache="rooms", **options):
    """RoomMixtures of a split's speech and noise, in its own rooms. Raises FileNotFoundError."""
    augmentation = options.get("augmentation", data.Augmentation())
    if dataclasses.replace(augmentation, babble=0.0).any():
        raise ValueError("simulated rooms take --babble alone of the augmentations")
    found = data.speech_and_noise(root, split)
    if not found:
        raise FileNotFoundError(f"{root}: simulated rooms need recordings of speech and of noise. "
                                f"Looked for the folders {split}/speech + {split}/noise; speech + "
                                "noise")
    speech_dir, noise_dir, without = found
    first_room = 10 ** 6 * ("train", "valid", "test").index(split)
    return RoomMixtures(speech_dir, noise_dir, config=config, rooms=rooms, first_room=first_room,
                        cache=cache,
                        without=without, **options)


def main():
    """Write a fixed set of mixtures in simulated rooms. Exits 2 for an impossible request."""
    parser = argparse.ArgumentParser(description="Speakers and noise in simulated rooms, as files "
                                                 "to evaluate on.")
    parser.add_argument("data", help="folder with SPLIT/speech and SPLIT/noise")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"),
                        help="(default: test)")
    parser.add_argument("--num-mics", type=int, default=4, help="microphones on a circle of 5 cm "
                                                                "radius (default: 4)")
    parser.add_argument("--num-speakers", type=int, default=2, help="(default: 2)")
    parser.add_argument("--count", type=int, default=30, help="mixtures, and rooms to choose from "
                                                              "(default: 30)")
    parser.add_argument("--snrs", type=float, nargs="*", metavar="X", default=(0, 5, 10, 15),
                        help="dB (default: 0 5 10 15)")
    parser.add_argument("--rt60", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="reverberation times in seconds (default: 0.2 0.6)")
    parser.add_argument("--floor", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="sides of the rooms in metres (default: 3 8)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices but the rooms' "
                                                            "(default: 0)")
    parser.add_argument("--out", default="rooms", help="folder for SPLIT/noisy, a channel for each "
                        "microphone, SPLIT/clean, one for each speaker, and responses "
                        "(default: rooms)")
    args = parser.parse_args()
    data.plain_warnings()
    try:
        if min(args.num_mics, args.num_speakers, args.count) < 1:
            raise ValueError("--num-mics, --num-speakers and --count are 1 or more")
        for name, given, least in (("--rt60", args.rt60, 0.05), ("--floor", args.floor, 2.5)):
            if given and not least <= given[0] <= given[1]:
                raise ValueError(f"{name} LOW HIGH is a range from {least} on; got {given[0]:g} "
                                 f"{given[1]:g}")
        room = {"rt60": tuple(args.rt60)} if args.rt60 else {}
        if args.floor:
            room["size"] = tuple((side, side, height)
                                 for side, height in zip(args.floor, (3.0, 4.0)))
        written = [Path(args.out) / args.split / side for side in ("clean", "noisy")]
        if any(folder.is_dir() and any(folder.iterdir()) for folder in written):
            raise ValueError(f"{args.out} holds mixtures already, which would be scored with "
                             "these: choose another --out, or remove it")
        dataset = open_rooms(args.data, args.split,
                             RoomConfig(args.num_mics, args.num_speakers, **room), args.count,
                             Path(args.out) / "responses", snrs=args.snrs, seed=args.seed)
        # All recordings in turn, or as many evenly spaced; beyond their number again, in other
        # rooms and noise.
        spaced = np.linspace(0, len(dataset) - 1, args.count).astype(int)
        numbers = range(args.count) if args.count > len(dataset) else spaced
        for i, number in enumerate(tqdm(numbers, "mixing", unit="file")):
            _, clean, mixture = dataset.utterance(number)
            for folder, wave in zip(written, (clean, mixture)):
                save_audio(folder / f"{i:04}.wav", wave, SAMPLE_RATE)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
