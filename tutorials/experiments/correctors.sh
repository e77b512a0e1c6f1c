# Correctors behind separators of simulated arrays: bash tutorials/experiments/correctors.sh CORPUS
set -e
CORPUS="$1"
python rooms.py $CORPUS --num-mics 4 --num-speakers 2 --count 60 --out runs/rooms2
ROOMS="--valid-every 0 --rooms 200 --room-cache runs/responses --precision fp32"
SEPARATOR="$ROOMS --separator train --num-frames 126 --clip 5 --ema 0.99"
python meanflow.py train --data $CORPUS $SEPARATOR --init meanflow --init-partial --width 8 --channel-mults 1 1 2 2 2 --num-mics 4 --separator-seconds 2 --batch-size 4 --lr 1e-3 --minutes 25 --out runs/one
python meanflow.py train --data $CORPUS $SEPARATOR --init runs/one/last.safetensors --init-partial --num-speakers 2 --separator-seconds 2 --batch-size 4 --lr 1e-3 --minutes 45 --out runs/two0
python meanflow.py train --data $CORPUS $SEPARATOR --init runs/two0/last.safetensors --separator-seconds 4 --batch-size 2 --lr 7e-4 --lr-decay 0.7 --minutes 25 --out runs/two1
python meanflow.py train --data $CORPUS $SEPARATOR --device cuda --init runs/two1/last.safetensors --separator-seconds 4 --batch-size 12 --lr 1e-3 --steps 1103 --out runs/two2
python meanflow.py train --data $CORPUS $SEPARATOR --device cuda --init runs/two2/last.safetensors --separator-seconds 4 --batch-size 16 --workers 6 --lr 1e-3 --lr-warmup 50 --lr-decay 0.6 --seed 21 --minutes 5 --out runs/two
CORRECTOR="$ROOMS --separator frozen --clip 0.05 --ema 0.98 --num-frames 64 --batch-size 2 --separator-seconds 4 --num-crops 400 --lr 1e-3"
python meanflow.py train --data $CORPUS $CORRECTOR --init runs/two/last.safetensors --schedule 100000 --steps 200 --out runs/start
CORRECTOR="$CORRECTOR --init runs/start/last.safetensors --schedule 400 --lr-decay 0.5 --steps 300"
python meanflow.py train --data $CORPUS $CORRECTOR --no-displacement --endpoint-weight 0 --out runs/plain
python meanflow.py train --data $CORPUS $CORRECTOR --endpoint-weight 0 --out runs/xr
python meanflow.py train --data $CORPUS $CORRECTOR --no-displacement --endpoint-weight 100 --out runs/endpoint
python meanflow.py train --data $CORPUS $CORRECTOR --endpoint-weight 100 --out runs/both
python tutorials/experiments/behind.py --data runs/rooms2 "two speakers=runs/two/last.safetensors" --correctors "plain MeanFlow=runs/plain/last.safetensors" "x_r-loss=runs/xr/last.safetensors" "Endpoint loss=runs/endpoint/last.safetensors" "both=runs/both/last.safetensors" --csv
python rooms.py $CORPUS --num-mics 4 --num-speakers 1 --count 60 --out runs/rooms
python rooms.py $CORPUS --num-mics 4 --num-speakers 2 --count 60 --rt60 0.7 1.0 --floor 8 12 --out runs/rooms2-large
python rooms.py $CORPUS --num-mics 4 --num-speakers 3 --count 60 --out runs/rooms3
python meanflow.py train --data $CORPUS --valid-every 0 --rooms 200 --room-cache runs/responses --precision fp32 --separator train --num-frames 126 --clip 5 --ema 0.99 --init runs/two1/last.safetensors --init-partial --num-speakers 3 --separator-seconds 2 --batch-size 4 --lr 1e-3 --lr-decay 0.5 --minutes 15 --out runs/three
python tutorials/experiments/behind.py --data runs/rooms "one speaker=runs/one/last.safetensors" --correctors "both=runs/both/last.safetensors" --csv
python tutorials/experiments/behind.py --data runs/rooms2-large "two speakers=runs/two/last.safetensors" --correctors "both=runs/both/last.safetensors" --csv
python tutorials/experiments/behind.py --data runs/rooms3 "three speakers=runs/three/last.safetensors" --correctors "both=runs/both/last.safetensors" --csv
