"""Networks by name: backbones, FSR or a peer at named places, the authors' checkpoints, and any other network."""

from fsr.config import BACKBONES, Backbone, FSRSpec, PeerSpec
from fsr.models.attach import attach_fsr
from fsr.models.build import build_model, model_of
from fsr.models.cost import count_macs, count_params
from fsr.models.fsr import FSR, Streams, gumbel_mask
from fsr.models.insert import Classifier, Inserted
from fsr.models.interventions import INTERVENTIONS, Intervention, intervene
from fsr.models.official import load_official
from fsr.models.peers import CAS, CIFS, FeatureDenoising, PeerStreams
