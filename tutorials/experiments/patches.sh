# Teacher, compact students and their controls: bash tutorials/experiments/patches.sh CORPUS
set -e
CORPUS="$1"
python dispatch.py train --data $CORPUS --preset teacher --distil none --num-frames 126 --batch-size 32 --lr 2e-3 --lr-decay 0.5 --clip 5 --ema 0.99 --babble 0.2 --valid-every 0 --device cuda --minutes 1 --out runs/gru
python dispatch.py train --data $CORPUS --init runs/gru/last.safetensors --distil none --num-frames 126 --batch-size 64 --lr 2e-3 --lr-decay 0.5 --clip 5 --ema 0.995 --babble 0.2 --valid-every 0 --seed 12 --device cuda --minutes 7.5 --out runs/gru-teacher
STUDENT="--warmup 50 --num-frames 126 --batch-size 4 --lr 3e-3 --lr-decay 0.33 --clip 5 --ema 0.99 --babble 0.2 --valid-every 0 --num-crops 4000"
python tutorials/experiments/patches.py --data $CORPUS --teacher runs/gru-teacher/last.safetensors --csv -- --steps 3000 $STUDENT
python tutorials/experiments/patches.py --data $CORPUS --teacher runs/gru-teacher/last.safetensors --rows "student alone" "random patches" DISPatch --csv -- --steps 20000 $STUDENT
