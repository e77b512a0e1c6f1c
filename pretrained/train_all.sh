#!/usr/bin/env bash
# Trains the shipped weights:  pretrained/train_all.sh CORPUS [cuda]
#
# CORPUS: folder with {train,valid}/{speech,noise}. Many hours of a CPU; with the second argument the steps
# that were trained on a GPU run there. A command that was interrupted continues when the script is run
# again. Results are in runs/; the last lines write them, float16, to runs/shipped.
set -euo pipefail
cd "$(dirname "$0")/.."
CORPUS="${1:?usage: pretrained/train_all.sh CORPUS [cuda]}"
DEVICE="${2:-cpu}"

# sgmse_stage1: a Schroedinger bridge, BBED from its weights, then augmentation
BRIDGE="--preset small --sde sbve --c 0.4 --t-eps 1e-4 --sampler bridge_ode --N 15 --pesq-weight 0"
torchrun --nproc_per_node=2 sgmse.py train --data $CORPUS --precision fp32 $BRIDGE --batch-size 4 --lr 1e-3 --steps 1714 --out runs/bridge
python sgmse.py train --data $CORPUS --precision fp32 --init runs/bridge/last.safetensors --batch-size 8 --lr 2e-4 --ema 0.99 --steps 295 --out runs/bridge2
BBED="--sde bbed --c 0.51 --t-eps 0.03 --pesq-weight 5e-4 --sampler em --N 1 --start 0.5 --babble 0.15 --batch-size 2"
torchrun --nproc_per_node=2 sgmse.py train --data $CORPUS --precision fp32 --init runs/bridge2/last.safetensors $BBED --lr 7e-4 --steps 2956 --out runs/bbed
torchrun --nproc_per_node=2 sgmse.py train --data $CORPUS --precision fp32 --init runs/bridge2/last.safetensors $BBED --lr 2e-4 --ema 0.995 --steps 4025 --out runs/bbed
BASE="--babble 0.15 --pesq-weight 5e-4 --snrs -5 0 5 10 15 20 --batch-size 4 --lr 6e-4"
python sgmse.py train --data $CORPUS --init runs/bbed/last.safetensors $BASE --ema 0.998 --steps 2426 --out runs/base0
python sgmse.py train --data $CORPUS --init runs/base0/last.safetensors $BASE --synthetic-noise 0.4 --speech-dropout 0.25 --random-eq 0.5 --ema 0.998 --steps 1189 --out runs/base1
python sgmse.py train --data $CORPUS --init runs/base1/last.safetensors $BASE --synthetic-noise 0.4 --speech-dropout 0.25 --random-eq 0.5 --ema 0.995 --minutes 17 --lr-decay 0.8 --out runs/base2
VARIED="--babble 0.15 --synthetic-noise 0.4 --speech-dropout 0.25 --random-eq 0.5 --snrs -5 0 5 10 15 20 --batch-size 4"
GPU="--babble 0.15 --synthetic-noise 0.4 --speech-dropout 0.25 --random-eq 0.5 --snrs -5 0 5 10 15 20 --valid-every 0 --device $DEVICE"
python sgmse.py train --data $CORPUS --init runs/base2/last.safetensors $GPU --pesq-weight 5e-4 --batch-size 64 --lr 1.2e-3 --lr-warmup 50 --lr-decay 0.6 --ema 0.995 --seed 12 --minutes 4.2 --out runs/base3
python sgmse.py train --data $CORPUS --init runs/base3/last.safetensors $GPU --pesq-weight 5e-4 --batch-size 64 --lr 1.2e-3 --lr-warmup 50 --lr-decay 0.6 --ema 0.995 --seed 21 --minutes 5.25 --out runs/stage1

# sgmse and sgmse_crp1
CRP="--init runs/stage1/last.safetensors --crp last --sampler em --batch-size 48 --lr-warmup 50 --lr-decay 0.6 --ema 0.99 --clip 1 --seed 23 --minutes 2.35"
python sgmse.py train --data $CORPUS $CRP $GPU --N 5 --start 0.5 --lr 4e-4 --out runs/crp5
python sgmse.py train --data $CORPUS $CRP $GPU --N 1 --start 0.03 --lr 3e-4 --out runs/crp1

# consistency
python consistency.py train --data $CORPUS --preset small --teacher runs/stage1/last.safetensors $GPU --pesq-weight 4e-4 --si-sdr-weight 1e-4 --batch-size 48 --lr 4e-4 --lr-warmup 50 --lr-decay 0.7 --ema 0.99 --seed 23 --minutes 2.35 --out runs/consistency

# drift
python drift.py train --data $CORPUS --preset small --batch-size 4 --lr 1e-3 --lr-decay 0.33 --clip 2 --ema 0.995 --valid-every 0 --steps 3000 --out runs/drift

# drift_dagger: weights of the losses chosen on validation mixtures, see the model card
DAGGER="--field separate --temperatures 0.1 0.5 1 --pesq-weight 0.1 --si-sdr-weight 0.1 --ccmse-weight 1"
python drift.py train --data $CORPUS --preset small $DAGGER --batch-size 4 --lr 1e-3 --lr-decay 0.33 --ema 0.995 --clip 2 --valid-every 0 --steps 750 --out runs/dagger0
LONG="$DAGGER $VARIED --num-frames 128 --clip 2 --ema 0.998 --valid-every 0"
python drift.py train --data $CORPUS --init runs/dagger0/last.safetensors $LONG --lr 1e-3 --steps 4605 --seed 1 --out runs/dagger1
python drift.py train --data $CORPUS --init runs/dagger1/last.safetensors $LONG --pesq-weight 0.25 --lr 7e-4 --lr-decay 0.8 --minutes 45 --seed 2 --out runs/dagger2
python drift.py train --data $CORPUS --init runs/dagger2/last.safetensors $LONG --pesq-weight 0.5 --lr 7e-4 --steps 499 --seed 3 --out runs/dagger3
python drift.py train --data $CORPUS --init runs/dagger3/last.safetensors $LONG --pesq-weight 0.6 --lr 7e-4 --steps 2121 --seed 5 --out runs/dagger4
python drift.py train --data $CORPUS --init runs/dagger4/last.safetensors $LONG --pesq-weight 1.2 --drift-weight 2500 --lr 7e-4 --steps 2760 --seed 6 --out runs/dagger5
python drift.py train --data $CORPUS --init runs/dagger5/last.safetensors $LONG --pesq-weight 1 --drift-weight 1000 --magnitude-weight 5 --lr 7e-4 --lr-decay 0.7 --minutes 64 --seed 7 --out runs/dagger6
python drift.py train --data $CORPUS --init runs/dagger6/last.safetensors $LONG --pesq-weight 1.3 --magnitude-weight 7 --lr 4e-4 --lr-decay 0.8 --minutes 12 --seed 8 --out runs/dagger7
python drift.py train --data $CORPUS --init runs/dagger7/last.safetensors $LONG --pesq-weight 1.2 --magnitude-weight 20 --lr 7e-4 --steps 1693 --seed 9 --out runs/dagger8
python drift.py train --data $CORPUS --init runs/dagger8/last.safetensors $LONG --pesq-weight 1.8 --magnitude-weight 26 --lr 7e-4 --lr-decay 0.7 --minutes 45 --seed 10 --out runs/dagger9
python drift.py train --data $CORPUS --init runs/dagger9/last.safetensors $LONG --pesq-weight 2.1 --magnitude-weight 28 --lr 6e-4 --lr-decay 0.8 --minutes 25 --seed 11 --out runs/dagger10
python drift.py train --data $CORPUS --init runs/dagger10/last.safetensors $DAGGER $GPU --pesq-weight 2.1 --magnitude-weight 28 --num-frames 128 --clip 2 --batch-size 48 --lr 1.2e-3 --lr-warmup 50 --lr-decay 0.6 --ema 0.995 --seed 12 --minutes 7.5 --out runs/drift_dagger
python drift.py train --data $CORPUS --init runs/drift_dagger/last.safetensors --steps 599 --batch-size 4 --clip 2 --lr 4e-4 --lr-warmup 20 --ema 0.99 --snrs -5 0 5 10 15 20 --no-speech 0.12 --hiss 0.3 --speed 0.4 --second-noise 0.3 --quiet-part 0.25 --synthetic-noise 0.3 --speech-dropout 0.3 --random-eq 0.4 --babble 0.1 --valid-files 12 --valid-every 300 --out runs/dagger11

# meanflow: its separator, then the corrector
MEANFLOW="--preset small --separator-size compact --valid-every 0 --num-frames 126"
python meanflow.py train --data $CORPUS $MEANFLOW --separator train --batch-size 4 --clip 5 --lr 1e-3 --ema 0.99 --steps 815 --out runs/first
python meanflow.py train --data $CORPUS $MEANFLOW --separator train --init runs/first/last.safetensors --babble 0.2 --batch-size 4 --clip 5 --ema 0.99 --lr 1e-3 --steps 850 --out runs/separator
python meanflow.py train --data $CORPUS $MEANFLOW --separator train --init runs/first/last.safetensors --babble 0.2 --batch-size 4 --clip 5 --ema 0.99 --lr 2e-4 --steps 1130 --out runs/separator
CORRECTOR="--separator frozen --babble 0.2 --num-frames 126 --batch-size 2 --clip 0.05 --ema 0.98"
python meanflow.py train --data $CORPUS $CORRECTOR --init runs/separator/last.safetensors --lr 1e-3 --schedule 100000 --steps 250 --out runs/start
python meanflow.py train --data $CORPUS $CORRECTOR --init runs/start/last.safetensors --endpoint-weight 100 --schedule 500 --lr 1e-3 --steps 380 --out runs/corrector
python meanflow.py train --data $CORPUS $CORRECTOR --init runs/start/last.safetensors --endpoint-weight 100 --schedule 500 --lr 2e-4 --steps 500 --out runs/corrector
python meanflow.py train --data $CORPUS --init runs/corrector/last.safetensors --separator train $GPU --precision fp32 --num-frames 126 --batch-size 24 --clip 5 --lr 1e-3 --lr-warmup 50 --lr-decay 0.6 --ema 0.99 --seed 21 --minutes 5 --out runs/separator2
python meanflow.py train --data $CORPUS --init runs/separator2/last.safetensors --separator frozen $VARIED --valid-every 0 --num-frames 126 --num-crops 1500 --clip 0.05 --ema 0.99 --endpoint-weight 100 --schedule 0 --lr 1e-3 --lr-decay 0.6 --minutes 12 --seed 22 --out runs/meanflow

# speakers: one speaker, then two, heard by four microphones in simulated rooms; then the corrector
ROOMS="--valid-every 0 --rooms 200 --room-cache runs/responses --precision fp32"
SEPARATOR="$ROOMS --separator train --num-frames 126 --clip 5 --ema 0.99"
python meanflow.py train --data $CORPUS $SEPARATOR --init runs/meanflow/last.safetensors --init-partial --width 8 --channel-mults 1 1 2 2 2 --num-mics 4 --separator-seconds 2 --batch-size 4 --lr 1e-3 --minutes 25 --out runs/one
python meanflow.py train --data $CORPUS $SEPARATOR --init runs/one/last.safetensors --init-partial --num-speakers 2 --separator-seconds 2 --batch-size 4 --lr 1e-3 --minutes 45 --out runs/two0
python meanflow.py train --data $CORPUS $SEPARATOR --init runs/two0/last.safetensors --separator-seconds 4 --batch-size 2 --lr 7e-4 --lr-decay 0.7 --minutes 25 --out runs/two1
python meanflow.py train --data $CORPUS $SEPARATOR --device $DEVICE --init runs/two1/last.safetensors --separator-seconds 4 --batch-size 12 --lr 1e-3 --steps 1103 --out runs/two2
python meanflow.py train --data $CORPUS $SEPARATOR --device $DEVICE --init runs/two2/last.safetensors --separator-seconds 4 --batch-size 16 --workers 6 --lr 1e-3 --lr-warmup 50 --lr-decay 0.6 --seed 21 --minutes 5 --out runs/two
CORRECTOR="$ROOMS --separator frozen --clip 0.05 --ema 0.98 --num-frames 64 --batch-size 2 --separator-seconds 4 --num-crops 400 --lr 1e-3"
python meanflow.py train --data $CORPUS $CORRECTOR --init runs/two/last.safetensors --schedule 100000 --steps 200 --out runs/start2
python meanflow.py train --data $CORPUS $CORRECTOR --init runs/start2/last.safetensors --schedule 400 --lr-decay 0.5 --steps 300 --endpoint-weight 100 --out runs/speakers

# student: DISPatch with the compact network, taught by drift_dagger
python dispatch.py train --data $CORPUS --teacher runs/dagger11/last.safetensors --num-crops 4000 --batch-size 4 --lr 1e-3 --lr-decay 0.5 --num-frames 126 --hop-length 128 --valid-every 0 --steps 10000 --out runs/dispatch

python - <<'END'
import torch
import train
for name, run in dict(sgmse_stage1="stage1", sgmse="crp5", sgmse_crp1="crp1", consistency="consistency", drift="drift", drift_dagger="dagger11",
                      meanflow="meanflow", speakers="speakers", dispatch="dispatch").items():
    train.save_checkpoint(f"runs/shipped/{name}.safetensors", train.load_checkpoint(f"runs/{run}/last.safetensors"), torch.float16)
END
