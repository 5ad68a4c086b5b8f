# Prefect's own base job template for Kubernetes, with a GPU, keys from a Secret, and room for a run's memory:
#   prefect work-pool get-default-base-job-template --type kubernetes \
#     | jq --arg image IMAGE -f deployments/kubernetes/gpu.jq > gpu.json
.variables.properties.gpus = {
  title: "GPUs", type: "integer", default: 1, minimum: 0, description: "GPUs of the pod that does the run."
}
# Here and not as a job variable of `prefect deploy`, which would then look for the code in /opt/prefect.
| .variables.properties.image.default = $image
| .variables.properties.memory_request.default = "16Gi"
| .variables.properties.cpu_request.default = "4"
| .variables.properties.finished_job_ttl.default = 86400
| .job_configuration.job_manifest.spec.template.spec.containers[0] |= (
    .resources.limits["nvidia.com/gpu"] = "{{ gpus }}"
    # AWS_ACCESS_KEY_ID and the like; left out where there is no such Secret.
    | .envFrom = [{secretRef: {name: "pti", optional: true}}]
  )
