# DriftSE without pairs and towards women's voices: bash tutorials/experiments/unpaired.sh CORPUS
set -e
CORPUS="$1"
PAIRED="--data $CORPUS --batch-size 4 --clip 2 --valid-every 0"
python drift.py train $PAIRED --preset small --lr 1e-3 --ema 0.99 --steps 1000 --out runs/first
python drift.py train $PAIRED --init runs/first/last.safetensors --babble 0.15 --synthetic-noise 0.4 --speech-dropout 0.25 --random-eq 0.5 --snrs -5 0 5 10 15 20 --lr 5e-4 --lr-decay 1 --ema 0.995 --steps 500 --out runs/paired
UNPAIRED="--data $CORPUS --init runs/paired/last.safetensors --temperatures 0.1 0.5 1 --batch-size 16 --steps 190 --lr 3e-4 --clip 2 --ema 0.98 --valid-every 0"
python drift.py train $UNPAIRED --unpaired $CORPUS/train/speech --out runs/unpaired
python drift.py train $UNPAIRED --unpaired $CORPUS/train/speech --field separate --out runs/unpaired-separate
mkdir -p runs/prompts runs/rest/train/speech                 # telephone prompts of four voices, and all other speech
for part in "$CORPUS"/train/speech/*; do
    case "$part" in */ast_*) to=runs/prompts ;; *) to=runs/rest/train/speech ;; esac
    ln -sfn "$(realpath "$part")" "$to"/
done
ln -sfn "$(realpath "$CORPUS")"/train/noise runs/rest/train/noise
EVALUATE="--data $CORPUS --every 3 --metrics pesq,estoi,si_sdr,dnsmos"
python drift.py train $UNPAIRED --data runs/rest --unpaired runs/prompts --out runs/to-prompts
python drift.py evaluate $EVALUATE --checkpoint runs/paired/last.safetensors --out evaluated/paired
python drift.py evaluate $EVALUATE --checkpoint runs/unpaired/last.safetensors --out evaluated/joint
python drift.py evaluate $EVALUATE --checkpoint runs/unpaired-separate/last.safetensors --out evaluated/separate
python drift.py evaluate $EVALUATE --checkpoint runs/to-prompts/last.safetensors --out evaluated/prompts
python metrics.py $CORPUS/test/pairs/clean $CORPUS/test/pairs/noisy --metrics pesq,estoi,si_sdr,dnsmos --csv evaluated/noisy.csv
python tutorials/experiments/side_by_side.py --table unpaired noisy=evaluated/noisy.csv "pairs=evaluated/paired" "then unpaired, joint field=evaluated/joint" "then unpaired, Eq. (7)=evaluated/separate" "then to another corpus, joint field=evaluated/prompts" --csv
python tutorials/experiments/voices.py $CORPUS/train/speech --links runs/women
python drift.py train $UNPAIRED --unpaired runs/women --out runs/women-only
BOTH="--data $CORPUS --every 2 --metrics pesq,estoi,si_sdr,dnsmos,distillmos"
python metrics.py $CORPUS/test/pairs/clean $CORPUS/test/pairs/noisy --metrics pesq,estoi,si_sdr,dnsmos,distillmos --csv evaluated/noisy2.csv
python drift.py evaluate $BOTH --checkpoint runs/paired/last.safetensors --out evaluated/paired2
python drift.py evaluate $BOTH --checkpoint runs/women-only/last.safetensors --out evaluated/women
python tutorials/experiments/side_by_side.py --table women noisy=evaluated/noisy2.csv pairs=evaluated/paired2 "then towards women=evaluated/women" --csv
python tutorials/experiments/voices.py clean=$CORPUS/test/pairs/clean noisy=$CORPUS/test/pairs/noisy pairs=evaluated/paired2/enhanced "then towards women=evaluated/women/enhanced" --csv
