"""Networks by name: backbones, FSR or a peer at named places, the authors' checkpoints, and any other network."""

from fsr.config import BACKBONES, Backbone, FSRSpec, PeerSpec
from fsr.models.build import Classifier, Inserted, attach_fsr, build_model, load_official, model_of
from fsr.models.fsr import FSR, INTERVENTIONS, Intervention, Streams, gumbel_mask, intervene
from fsr.models.modes import count_macs, count_params
from fsr.models.peers import CAS, CIFS, FeatureDenoising
